"""New revisions of a plan while it runs: by its `replan` handler after a failure, or from outside.

Nodes that are done or under way are kept as they are; a revision that changes one is refused with the node named, and
one that leaves one out gets it back. Everything else is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from midstream.core.errors import UserError
from midstream.plans import undoing
from midstream.plans.checks import compile_plan, pinned
from midstream.plans.errors import Failure, PlanError
from midstream.plans.handlers import Handler
from midstream.plans.instances import PLANNER, Instance
from midstream.plans.plan import Node, Plan, load_plan
from midstream.plans.states import NodeState, Phase, RunStatus

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S, R = NodeState, RunStatus
REPLACEABLE = frozenset({S.PENDING, S.READY, S.RETRYING, S.FAILED, S.SKIPPED, S.CANCELLED, S.COMPENSATED})


def escalate(runner: Runner, failed: Instance) -> None:
    """A node of the outermost plan failed for good: a new plan, else back to the savepoint, else the run fails."""
    graph, plan = runner.graph, runner.graph.compiled.plan
    root = graph.root
    if root.row.phase is not Phase.FORWARD:
        graph.check_quiet(root)
        return
    if any(one.planner and one.state is S.RUNNING for one in root.children):
        return  # the planner at work will see this failure or leave it for the next
    if plan.replan is not None and runner.use("replans"):
        planner = make_planner(runner, len([one for one in root.children if one.planner]) + 1)
        graph.ready(planner)
        return
    if plan.rollback_to is not None and _reached(root, plan.rollback_to) and runner.use("rollbacks"):
        graph.fail_scope(root, failed.row.error, undoing.RETURN + plan.rollback_to)
        return
    graph.fail_scope(root, failed.row.error)


def _reached(root: Instance, savepoint: str) -> bool:
    assert root.frame is not None
    return any(one.node.savepoint == savepoint and one.state is S.SUCCEEDED for one in root.frame.instances.values())


def make_planner(runner: Runner, number: int) -> Instance:
    """The call that writes the next plan."""
    replan = runner.graph.compiled.plan.replan
    assert replan is not None
    node = Node.model_construct(
        id="replan", handler=replan.handler, args=replan.args, timeout_s=replan.timeout_s, retry=replan.retry
    )
    return runner.graph.add(f"{PLANNER}{number}", node)


def planner_arguments(runner: Runner, handler: Handler) -> dict[str, Any]:
    """What a `replan` handler sees of the run, by the names of its parameters."""
    root = runner.graph.root
    assert root.frame is not None
    failed = [one for one in root.frame.instances.values() if one.state is S.FAILED]
    known: dict[str, Any] = {
        "plan": runner.graph.compiled.plan.model_dump(mode="json", exclude_defaults=True),
        "failed": failed[0].node.id if failed else "",
        "error": str(Failure.from_json(failed[0].row.error)) if failed and failed[0].row.error else "",
        "states": {name: str(one.state) for name, one in root.frame.instances.items()},
    }
    return {name: value for name, value in known.items() if name in handler.parameters}


async def finish(runner: Runner, planner: Instance) -> None:
    """The planner ended: take its plan, or fail with what was wrong before."""
    root = runner.graph.root
    assert root.frame is not None
    runner.ledger.change_run(planned=int(planner.path.removeprefix(PLANNER)))
    problem = ""
    if planner.state is S.SUCCEEDED:
        try:
            problem = apply(runner, _written(await runner.payloads.load(planner.row.output)))
        except UserError as error:
            problem = error.message
    else:
        problem = str(Failure.from_json(planner.row.error)) if planner.row.error else "it failed"
    if not problem:
        return
    runner.ledger.note("note", planner.path, refused=problem)
    failed = next((one for one in root.frame.instances.values() if one.state is S.FAILED), None)
    if failed is not None:
        escalate(runner, failed)


def _written(plan: Any) -> Plan:
    """The plan a `replan` handler returned: data, and never the path of a file."""
    if not isinstance(plan, Mapping):
        raise PlanError("plan", [f"a `replan` handler must return a plan as a mapping, not {type(plan).__name__}"])
    return load_plan(cast("Mapping[str, Any]", plan))


def apply(runner: Runner, revised: Plan) -> str:
    """Make `revised` the run's plan; returns what is wrong with it, or nothing."""
    graph = runner.graph
    root, frame = graph.root, graph.root.frame
    if frame is None or root.row.phase is not Phase.FORWARD:
        return "the run has not begun, or is ending"
    kept = {name: one for name, one in frame.instances.items() if one.state not in REPLACEABLE or one.resolving}
    plan = pinned(revised, runner.services.handlers)
    named = {node.id: node for node in plan.nodes}
    for name, one in kept.items():
        if name in named and named[name] != one.node:
            return f"node '{name}' is {one.state} and cannot be changed; give the new node another id"
    plan = plan.model_copy(
        update={"nodes": (*(one.node for name, one in kept.items() if name not in named), *plan.nodes)}
    )
    for name, one in frame.instances.items():
        if name not in kept and name in named and graph.holds_failed_compensation(one):
            return f"node '{name}' could not be undone; give the new node another id"
    if plan.hash in runner.row.plans_seen:
        return "this plan was tried before: the run makes no progress"
    try:
        compiled = compile_plan(plan, runner.services.handlers, runner.services.limits.total)
    except PlanError as error:
        return error.message
    graph.compiled = frame.compiled = compiled
    for name, one in list(frame.instances.items()):
        if name in kept:
            continue
        if name in compiled.nodes:
            graph.reset(one)
            one.node = compiled.nodes[name]
        else:
            if one.state in (S.PENDING, S.READY, S.RETRYING):
                graph.change(one, S.CANCELLED, reason="a new plan does without it")
            del frame.instances[name]
    for name, node in compiled.nodes.items():
        if name not in frame.instances:
            graph.add(name, node, frame)
    text = runner.ledger.encode_text(plan.as_json())
    seen = [*runner.row.plans_seen, plan.hash]
    runner.ledger.change_run(plan=text, revision=runner.row.revision + 1, plans_seen=seen)
    graph.release_pending(frame)
    return ""
