"""Another try of a failed run: what failed runs again under the same keys, and what succeeded is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from midstream.plans import questions
from midstream.plans.graph import Graph, fields_to_reset
from midstream.plans.instances import Instance, Shape, Todo
from midstream.plans.rows import NodeRow
from midstream.plans.states import NodeState, Phase, RunStatus

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S, R = NodeState, RunStatus


def retry_failed(runner: Runner) -> str:
    """Run the failed and cancelled nodes of a failed run again, and nothing that succeeded; returns what is wrong with
    that, or nothing."""
    graph = runner.graph
    root, frame = graph.root, graph.root.frame
    if runner.row.status is not R.FAILED or frame is None:
        return f"only a failed run can be tried again; this one is {runner.row.status}"
    if any(graph.holds_failed_compensation(one) for one in frame.instances.values()):
        return "a compensation failed; roll the run back first"
    for one in list(frame.instances.values()):
        for call in reopen(graph, one):
            questions.ask_again(runner, call)
    graph.change(root, S.PENDING, phase=Phase.FORWARD, purpose="", error=None)
    graph.change(root, S.READY)
    graph.change(root, S.RUNNING)
    runner.ledger.change_run(R.RUNNING, error=None)
    graph.release_pending(frame)
    return ""


def reopen(graph: Graph, one: Instance) -> list[Instance]:
    """Return what failed, was cancelled or was skipped in `one` to pending, under the same keys, and keep what
    succeeded; containers around it run again at once. Returns the calls that are tried again. What was
    compensated starts anew."""
    row = one.row
    undone = one.state is S.COMPENSATED and (one.shape is Shape.CALL or (one.is_body and one.node.compensate))
    begins = one.scope if row.steps_done else f"{row.generation}.0"
    # What its steps did is no longer there.
    undone = undone or (one.state in (S.FAILED, S.CANCELLED) and begins in row.undone)
    looped = one.shape is Shape.LOOP and any(child.state is S.COMPENSATED for child in one.children)
    if undone or looped:
        graph.reset(one)
        return []
    if one.state not in (S.FAILED, S.CANCELLED, S.SKIPPED, S.COMPENSATED):
        return []
    names = ("generation", "starts", "recoveries", "steps_done", "bindings", "undone")
    kept = {name: getattr(row, name) for name in names}
    choice = row.choice if row.steps_done else 0
    graph.change(one, S.PENDING, **fields_to_reset(NodeRow(**kept, choice=choice), row))
    if one.shape is Shape.CALL:
        return [one]
    again = [each for child in one.children for each in reopen(graph, child)]
    if one.children:
        graph.change(one, S.READY)
        graph.change(one, S.RUNNING)
        _go_on(graph, one)
    return again


def _go_on(graph: Graph, owner: Instance) -> None:
    """Release what is pending in a container that was opened before."""
    if owner.frame is not None and owner.shape is Shape.PLAN:
        graph.release_pending(owner.frame)
        return
    waiting = [child for child in owner.children if child.state is S.PENDING]
    for child in waiting:
        graph.ready(child)
    if owner.shape is Shape.MAP:
        owner.elements_succeeded = sum(child.state is S.SUCCEEDED for child in owner.children)
        owner.elements_settled = owner.elements_succeeded
        if not waiting and all(child.state is S.SUCCEEDED for child in owner.children):
            graph.open_next(owner) if owner.opened < len(owner.items) else graph.todo.append((Todo.FINISH, owner))
    elif owner.children[-1].state is S.SUCCEEDED:
        graph.todo.append((Todo.ROUND, owner))
