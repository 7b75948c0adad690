"""What the graph leaves to do that needs payloads: conditions, lists, rounds and outputs of containers.

Each function first loads what it needs and then changes the graph without waiting, so that what is written at any
moment can be continued from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from midstream.plans import inputs, outcomes, questions, revision, undoing
from midstream.plans.errors import Failure, Kind, Permanent
from midstream.plans.instances import Instance, Shape, Todo
from midstream.plans.states import NodeState, Phase, RunStatus
from midstream.store.exact_json import to_json

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S = NodeState


async def do(runner: Runner, todo: Todo, one: Instance) -> None:
    """Do one thing the graph left to do; nothing if it no longer applies."""
    match todo:
        case Todo.CONSIDER if one.state is S.READY:
            await _consider(runner, one)
        case Todo.FINISH if one.state is S.RUNNING and one.row.phase is Phase.FORWARD:
            await _finish(runner, one)
        case Todo.ROUND if one.state is S.RUNNING and one.row.phase is Phase.FORWARD:
            await _round(runner, one)
        case Todo.ESCALATE if one.state is S.FAILED:
            revision.escalate(runner, one)
        case Todo.REVISE:
            await revision.finish(runner, one)
        case Todo.UNDO if one.row.phase is Phase.UNDOING:
            undoing.begin(runner, one)
        case _:
            pass


async def _consider(runner: Runner, one: Instance) -> None:
    graph, node = runner.graph, one.node
    first = one.level == 0 and not one.row.starts and not one.planner
    try:
        if first and node.when is not None and not await inputs.condition(runner.payloads, one, runner.row.input):
            graph.change(one, S.SKIPPED, reason="its condition does not hold")
            graph.settle(one)
            return
        if first and node.approval is not None and not (allowed := questions.approved(runner, one)):
            if allowed is False:
                raise Permanent("its start was not approved")
            return
        if one.shape is Shape.CALL:
            runner.queue.push(one)
        else:
            await _open(runner, one)
    except Permanent as error:
        graph.change(one, S.FAILED, error=Failure.of(error).as_json())
        graph.failed(one)


async def _open(runner: Runner, one: Instance) -> None:
    """Start a map, a loop or a sub-plan."""
    graph, node = runner.graph, one.node
    values: Any = None
    if one.shape is Shape.MAP:
        assert node.map is not None
        values = (await inputs.arguments(runner.payloads, one, {"over": node.map.over}, runner.row.input))["over"]
        if not isinstance(values, list | tuple):
            raise Permanent(f"'map.over' must be a list, not {type(values).__name__}")
        items = [to_json(item, "element of a map") for item in cast("list[Any]", values)]
        graph.change(one, S.RUNNING, bindings=runner.ledger.encode(list(cast("list[Any]", values)), "list of a map"))
        graph.begin_map(one, items)
    elif one.shape is Shape.LOOP:
        graph.change(one, S.RUNNING)
        graph.begin_round(one)
    else:
        assert node.plan is not None
        values = await inputs.arguments(runner.payloads, one, node.args, runner.row.input)
        inputs.check_input(node.plan, values, f"sub-plan '{one.path}'")
        graph.change(one, S.RUNNING, bindings=runner.ledger.encode(values, f"input of '{one.path}'"))
        graph.begin(one)


async def _finish(runner: Runner, one: Instance) -> None:
    """Everything below a container settled: it succeeds."""
    try:
        text = await inputs.output(runner.payloads, one, runner.row.input)
    except Permanent as error:
        runner.graph.fail_scope(one, Failure.of(error).as_json())
        return
    if one is not runner.graph.root:
        outcomes.succeed(runner, one, text)
        return
    output = runner.ledger.encode_output(text)
    runner.graph.change(one, S.SUCCEEDED, output=output)
    runner.ledger.change_run(RunStatus.SUCCEEDED, output=output, error=None)


async def _round(runner: Runner, one: Instance) -> None:
    """A round of a loop succeeded: the loop ends, stalls, or goes on."""
    loop, last = one.node.loop, one.children[-1]
    assert loop is not None
    if last.state is not S.SUCCEEDED:
        return
    try:
        over = await inputs.ends(runner.payloads, one, last, runner.row.input)
    except Permanent as error:
        runner.graph.fail_scope(one, Failure.of(error).as_json())
        return
    if over or (last.index >= loop.max_rounds and (loop.until is None or loop.on_limit == "accept")):
        await _finish(runner, one)
        return
    if last.index >= loop.max_rounds:
        failure = Failure(Kind.PERMANENT, "LoopLimit", f"its condition did not hold within {loop.max_rounds} rounds")
        runner.graph.fail_scope(one, failure.as_json())
        return
    stalled = _stalled(runner, one)
    if loop.until is not None and loop.stall_after is not None and stalled >= loop.stall_after:
        failure = Failure(Kind.PERMANENT, "NoProgress", f"{stalled} rounds in a row returned nothing new")
        runner.graph.fail_scope(one, failure.as_json())
        return
    runner.graph.begin_round(one)


def _stalled(runner: Runner, one: Instance) -> int:
    """Rounds in a row whose output was returned before. Payloads with equal content have equal texts."""
    place = (one.path, one.row.generation)
    seen, stalled, counted = runner.stalls.get(place, (set[str](), 0, 0))
    for child in one.children[counted:]:
        stalled = stalled + 1 if child.row.output in seen else 0
        seen.add(child.row.output)
    runner.stalls[place] = (seen, stalled, len(one.children))
    return stalled
