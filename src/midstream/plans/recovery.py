"""Takes a run up from the journal: rebuilds its graph, and decides about calls whose outcome was lost with a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from midstream.core import clock
from midstream.plans import commands, outcomes, questions, revision, undoing
from midstream.plans.checks import handlers_of
from midstream.plans.errors import Failure, HandlersMissing, JournalDamaged, Kind
from midstream.plans.handlers import Handler, Handlers
from midstream.plans.instances import PLANNER, RESOLVE, Instance, Shape, Todo
from midstream.plans.states import ENDED, SETTLED, NodeState, Phase, RunStatus
from midstream.store.exact_json import to_json

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S, R = NodeState, RunStatus
Migrate = Callable[[dict[str, Any]], dict[str, Any]]
_log = logging.getLogger(__name__)


def find_handler(handlers: Handlers, name: str) -> tuple[Handler, Migrate]:
    """A registered handler, or the one that declared migrations lead to, with what turns the arguments. Raises
    `HandlersMissing`."""
    found = handlers.get(name)
    if found is not None:
        return found, lambda args: args
    migrated = handlers.migrated(name)
    if migrated is None:
        raise HandlersMissing(f"the handler '{name}' is not registered", handlers.hint(name))
    changes = migrated[1]

    def migrate(args: dict[str, Any]) -> dict[str, Any]:
        for change in changes:
            args = change(args)
        return args

    return migrated[0], migrate


async def recover(runner: Runner) -> None:
    """Bring the runner to where the journal ends. Raises `HandlersMissing` after marking the run `blocked`, and
    `JournalDamaged`."""
    graph, row = runner.graph, runner.row
    if row.status not in ENDED:
        await _check_handlers(runner)
    root = graph.root
    if root.state is S.PENDING and row.status not in ENDED:
        graph.change(root, S.READY)
        graph.change(root, S.RUNNING)
        graph.begin(root)
    else:
        await _rebuild(runner)
        if row.status not in ENDED:
            _resume(runner)
    if row.deadline is not None and row.status not in ENDED:
        runner.after(row.deadline - clock.time(), lambda: _expire(runner))


def _expire(runner: Runner) -> None:
    root = runner.graph.root
    if runner.row.status not in ENDED and root.row.phase is Phase.FORWARD:
        runner.graph.fail_scope(root, Failure(Kind.FATAL, "DeadlinePassed", "the run's deadline passed").as_json())


async def _check_handlers(runner: Runner) -> None:
    """Every handler the rest of the run needs must be registered in its version, or migrated; a changed source under
    the same version is reported."""
    handlers, row = runner.services.handlers, runner.row
    missing: list[str] = []
    needed = handlers_of(runner.graph.compiled.plan, runner.graph.done())
    if (ends := await commands.ending(runner)) is not None:
        needed = runner.graph.needed_to_end(compensates=ends)
    for name, path in dict(needed).items():
        found = handlers.get(name)
        if found is None and handlers.migrated(name) is None:
            missing.append(f"'{name}' for node '{path}' ({handlers.hint(name)})")
        elif found is not None and found.fingerprint != row.fingerprints.get(name, found.fingerprint):
            _log.warning("run %s: the source of %s changed since the run began, and its version did not", row.uid, name)
            runner.ledger.note("note", path, handler_changed=name)
            runner.ledger.change_run(fingerprints={**row.fingerprints, name: found.fingerprint})
    if not missing:
        if row.status is R.BLOCKED:
            runner.ledger.change_run(R.RUNNING, error=None)
        return
    message = f"run '{row.uid}' needs handlers that are not registered: {'; '.join(missing)}"
    hint = "register these versions again, or declare how to go on: handlers.migrate(name, old, new, change)"
    if row.status is not R.BLOCKED:
        runner.ledger.change_run(R.BLOCKED, error=Failure(Kind.FATAL, "HandlersMissing", message).as_json())
        if (written := runner.ledger.commit()) is not None:
            await written
    raise HandlersMissing(message, hint)


async def _rebuild(runner: Runner) -> None:
    """Create the instances that the journal has rows of."""
    graph = runner.graph
    waiting = [graph.root]
    while waiting:
        one = waiting.pop()
        if one.state in (S.PENDING, S.READY, S.SKIPPED) and not one.row.choice:
            continue
        layer = Shape.PLAN if one.node.plan is not None and one.is_body else one.shape
        if layer is Shape.PLAN:
            if one.row.bindings or one is graph.root:
                graph.recount(graph.open_frame(one))
        elif layer is Shape.MAP and one.row.bindings:
            values = await runner.payloads.load(one.row.bindings)
            if not isinstance(values, list):
                raise JournalDamaged(f"the list of the map '{one.path}' is not one", "restore it from a copy")
            one.items = [to_json(item, "element of a map") for item in values]  # pyright: ignore[reportUnknownVariableType]
            while one.opened < len(one.items) and graph.has_begun(f"{one.path}[{one.opened}]"):
                child = graph.open_child(one, one.opened)
                one.opened += 1
                one.elements_settled += child.state in SETTLED
                one.elements_succeeded += child.state is S.SUCCEEDED
        elif layer is Shape.LOOP:
            while graph.has_begun(f"{one.path}#{len(one.children) + 1}"):
                graph.open_child(one, len(one.children) + 1)
        waiting.extend(one.children)
    number = 1
    while graph.has_begun(f"{PLANNER}{number}"):
        revision.make_planner(runner, number)
        number += 1


def _resume(runner: Runner) -> None:
    """Take up every instance that was not at an end. Calls first, so that scopes see which of them are open."""
    graph = runner.graph
    everything = list(graph.instances.values())
    for one in everything:
        if one.shape is Shape.CALL:
            _resume_call(runner, one)
    for rows in runner.ledger.steps.values():
        for row in rows.values():
            if row.state == "open":
                questions.arm(runner, row)
    for one in everything:
        if one.state is S.WAITING:
            questions.wake(runner, one)
        elif one.shape is not Shape.CALL and one.state is S.READY:
            graph.todo.append((Todo.CONSIDER, one))
    for one in reversed(everything):
        if one.shape is not Shape.CALL and (one.state is S.RUNNING or one is graph.root):
            _resume_container(runner, one)


def _resume_call(runner: Runner, one: Instance) -> None:
    graph = runner.graph
    if one.state is S.READY:
        graph.todo.append((Todo.CONSIDER, one))
    elif one.state is S.RETRYING:
        outcomes.arm_retry(runner, one)
    elif one.planner and one.state in (S.SUCCEEDED, S.FAILED):
        pass
    elif one.state is S.RUNNING:
        _resume_lost(runner, one)
    elif one.state is S.COMPENSATING:
        undoing.resume_takeover(runner, one)


def _resume_lost(runner: Runner, one: Instance) -> None:
    """Its worker died while `one` ran."""
    graph = runner.graph
    handler = find_handler(runner.services.handlers, runner.call_of(one)[0])[0]
    recoveries = one.row.recoveries + 1
    graph.change(one, recoveries=recoveries)
    exhausted = outcomes.worn_out(runner, one)
    if handler.effects in ("none", "steps") and exhausted:
        outcomes.fail(runner, one, outcomes.died(one))
    elif handler.effects in ("none", "steps"):
        if not outcomes.failing(runner, one):
            graph.ready(one)
        elif handler.effects == "steps" and (open_steps := questions.steps_in_doubt(runner, one)):
            questions.ask_doubt(runner, one, open_steps[0].key)
        else:
            graph.change(one, S.CANCELLED, reason="its scope failed")
    elif handler.effects == "idempotent" and not exhausted:
        graph.ready(one, reason=RESOLVE)
    else:
        outcomes.investigate(runner, one, handler)


def _resume_container(runner: Runner, one: Instance) -> None:
    graph = runner.graph
    if one.row.phase is Phase.SETTLING:
        graph.check_quiet(one)
    elif one.row.phase is Phase.UNDOING:
        graph.todo.append((Todo.UNDO, one))
    elif one.state is not S.RUNNING:
        return
    elif one.shape is Shape.PLAN and one.frame is not None:
        if one is graph.root:
            _resume_escalation(runner)
        graph.release_pending(one.frame)
    elif one.shape is Shape.MAP and one.elements_settled == len(one.items):
        graph.todo.append((Todo.FINISH, one))
    elif one.shape is Shape.LOOP and one.children and one.children[-1].state is S.SUCCEEDED:
        graph.todo.append((Todo.ROUND, one))


def _resume_escalation(runner: Runner) -> None:
    """Go on with a failure that the outermost plan had not dealt with."""
    root = runner.graph.root
    assert root.frame is not None
    planners = [one for one in root.children if one.planner]
    newest = planners[-1] if planners else None
    if newest is not None and newest.state not in (S.SUCCEEDED, S.FAILED):
        return
    for one in root.frame.instances.values():
        if one.state is S.FAILED and one.node.on_failure == "fail":
            if newest is not None and len(planners) > runner.row.planned:
                runner.graph.todo.append((Todo.REVISE, newest))
            else:
                runner.graph.todo.append((Todo.ESCALATE, one))
            return
