"""Commands for a run from outside, taken from the inbox: answers, cancellation, rollback, new plans, another try.

Whoever sends a command need not be the process that holds the run. A command is carried out once: it is deleted in the
transaction with its effect.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from midstream.core.errors import UserError
from midstream.plans import questions, retrying, revision, undoing
from midstream.plans.errors import Failure, Kind
from midstream.plans.journal import read_inbox
from midstream.plans.plan import load_plan
from midstream.plans.states import ENDED, NodeState, Phase, RunStatus

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S, R = NodeState, RunStatus
ANSWER, CANCEL, ROLLBACK, REVISE, RETRY = "answer", "cancel", "rollback", "revise", "retry"


async def carry_out(runner: Runner) -> None:
    """Carry out what waits in the inbox, in order. What cannot be done is noted as an event."""
    uid = runner.row.uid
    for command in await runner.services.journal.read(lambda connection: read_inbox(connection, uid)):
        data: dict[str, Any] = json.loads(command.data)
        problem = _carry_out(runner, command.kind, command.target, data)
        runner.ledger.consume(command.id)
        runner.ledger.note("note", "", command=command.kind, **({"refused": problem} if problem else {}))


async def ending(runner: Runner) -> bool | None:
    """Whether the run is to be cancelled or rolled back as a whole, or is being: True when that compensates, False when
    it keeps what succeeded, None when the run goes on."""
    purpose = runner.graph.root.row.purpose
    if purpose in ("cancel", "rollback", undoing.KEEP):
        return purpose != undoing.KEEP
    uid = runner.row.uid
    for command in await runner.services.journal.read(lambda connection: read_inbox(connection, uid)):
        data: dict[str, Any] = json.loads(command.data)
        if command.kind == CANCEL:
            return bool(data.get("compensate"))
        if command.kind == ROLLBACK and data.get("to") is None:
            return True
    return None


def _carry_out(runner: Runner, kind: str, target: str, data: dict[str, Any]) -> str:
    ended = runner.row.status in ENDED
    if kind == ROLLBACK:
        return undoing.request(runner, data.get("to"))
    if kind == RETRY:
        return retrying.retry_failed(runner)
    if ended:
        return f"the run is {runner.row.status}"
    if kind == ANSWER:
        return questions.answer(runner, target, data["answer"])
    if kind == CANCEL:
        return _cancel(runner, bool(data.get("compensate")))
    try:
        return revision.apply(runner, load_plan(data["plan"]))
    except UserError as error:
        return error.message


def _cancel(runner: Runner, compensate: bool) -> str:
    root = runner.graph.root
    if root.row.phase is not Phase.FORWARD:
        return "the run is ending already"
    error = Failure(Kind.FATAL, "Cancelled", "it was cancelled").as_json()
    runner.graph.fail_scope(root, error, "cancel" if compensate else undoing.KEEP)

    def stop_calls() -> None:
        for one, task in runner.tasks.items():
            if one.state is S.RUNNING:
                task.cancel()

    runner.after(runner.services.grace_s, stop_calls)
    return ""
