"""Questions and timers of nodes: opening, expiry, answers, and the questions the executor asks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from midstream.core import clock
from midstream.plans import outcomes
from midstream.plans.context import APPROVAL, DOUBT
from midstream.plans.errors import Failure, Kind
from midstream.plans.instances import Instance
from midstream.plans.misfit import misfit
from midstream.plans.port import question_id
from midstream.plans.rows import StepRow
from midstream.plans.states import NodeState

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S = NodeState
DOUBT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"outcome": {"enum": ["done", "not_done", "failed"]}, "output": {}},
    "required": ["outcome"],
    "additionalProperties": False,
}
"""Of an answer about a call in doubt: whether it happened, and then what it returned."""


def remaining(wake_at: float | None, wait_s: float | None) -> float:
    """Seconds of a wait that are left. A clock that was set back makes no wait longer than it was to be."""
    if wake_at is None:
        return 0.0
    left = max(wake_at - clock.time(), 0.0)
    return left if wait_s is None else min(left, wait_s)


def open_row(runner: Runner, row: StepRow) -> None:
    """Write a new question or timer."""
    if row.kind == "question":
        row.id = question_id(runner.row.uid, row)
        if (redact := runner.services.redact) is not None:
            row.prompt = redact(row.prompt)
    runner.ledger.change_step(row)
    arm(runner, row)


def arm(runner: Runner, row: StepRow) -> None:
    """Let an open question or timer end in time."""
    if row.wake_at is None:
        return

    def end() -> None:
        if row.state == "open":
            runner.ledger.change_step(row, state="done" if row.kind == "timer" else "expired")
            if (one := runner.graph.instances.get(row.path)) is not None:
                wake(runner, one)

    runner.after(remaining(row.wake_at, row.wait_s), end, lambda: row.kind == "timer" and row.state == "open")


def rows_of(runner: Runner, one: Instance) -> list[StepRow]:
    """Steps, questions and timers of the node's current generation and fallback."""
    return [row for row in runner.ledger.steps.get(one.path, {}).values() if row.scope == one.scope]


def wake(runner: Runner, one: Instance) -> None:
    """Make a waiting node ready when nothing it waits for is open."""
    if one.state is S.WAITING and not any(row.state == "open" for row in rows_of(runner, one)):
        runner.graph.ready(one)


def steps_in_doubt(runner: Runner, one: Instance) -> list[StepRow]:
    """Steps that began, may have had their effect, and must not be repeated."""
    return [row for row in rows_of(runner, one) if (row.kind, row.state, row.effects) == ("step", "intent", "once")]


def approved(runner: Runner, one: Instance) -> bool | None:
    """Whether the node's start was approved; None when that is not known yet, and then it is asked."""
    approval = one.node.approval
    assert approval is not None
    row = runner.ledger.steps.get(one.path, {}).get((one.scope, APPROVAL))
    if row is not None and row.state != "open":
        return row.state == "answered" and row.value == "true"
    runner.graph.change(one, S.WAITING)
    if row is None:
        prompt = approval.prompt or f"May '{one.path}' start?"
        row = StepRow(one.path, one.scope, APPROVAL, "question", "open", prompt=prompt, schema={"type": "boolean"})
        row.asked_at = clock.time()
        if approval.expires_s is not None:
            row.wake_at, row.wait_s = row.asked_at + approval.expires_s, approval.expires_s
        open_row(runner, row)
    return None


def ask_again(runner: Runner, one: Instance) -> None:
    """A failed node is tried again: open the questions that made it fail, those nobody answered and a refusal."""
    for row in rows_of(runner, one):
        refused = row.key == APPROVAL and row.state == "answered" and row.value != "true"
        if row.kind == "question" and (refused or (row.state == "expired" and not row.default)):
            now = clock.time()
            wake_at = None if row.wait_s is None else now + row.wait_s
            runner.ledger.change_step(row, state="open", value="", asked_at=now, wake_at=wake_at)
            arm(runner, row)


def ask_doubt(runner: Runner, one: Instance, step: str = "") -> None:
    """The node, or a step of it, is in doubt: a person has to say whether it happened."""
    key = f"{DOUBT}:{step}" if step else DOUBT
    what = f"step '{step}' of '{one.path}'" if step else f"'{one.path}' ({one.row.handler})"
    row = runner.ledger.steps.get(one.path, {}).get((one.scope, key))
    runner.graph.change(one, S.IN_DOUBT, reason=f"whether {what} had its effect is not known")
    if row is None:
        prompt = f"Did {what} have its effect? Its key is {runner.key(one)}{f'/{step}' if step else ''}."
        row = StepRow(one.path, one.scope, key, "question", "open", prompt=prompt, schema=DOUBT_SCHEMA)
        row.asked_at = clock.time()
        open_row(runner, row)
    else:
        runner.ledger.change_step(row, state="open", value="")


def answer(runner: Runner, question: str, value: Any) -> str:
    """Take an answer; returns what is wrong with it, or nothing."""
    row = next((row for row in runner.open_questions() if row.id == question), None)
    if row is None:
        return "no such question is open"
    if problem := misfit(value, row.schema):
        return problem
    one = runner.graph.instances.get(row.path)
    runner.ledger.change_step(row, state="answered", value=runner.ledger.encode(value, "answer"))
    if one is None:
        return ""
    if row.key.startswith(DOUBT):
        _decide(runner, one, row, cast("dict[str, Any]", value))
    else:
        wake(runner, one)
    return ""


def _decide(runner: Runner, one: Instance, row: StepRow, decided: dict[str, Any]) -> None:
    """Someone said whether a call in doubt happened."""
    if one.state is not S.IN_DOUBT:
        return
    outcome = decided["outcome"]
    step_key = row.key.removeprefix(DOUBT).removeprefix(":")
    step = runner.ledger.steps[one.path].get((one.scope, step_key)) if step_key else None
    if outcome == "failed":
        runner.ledger.change_step(row, state="failed")
        outcomes.fail(runner, one, Failure(Kind.PERMANENT, "SaidToHaveFailed", "a person said that it failed"))
        return
    if step is not None:
        done = outcome == "done"
        value = runner.ledger.encode(decided.get("output"), "answer") if done else ""
        runner.ledger.change_step(step, state="done" if done else "absent", value=value)
        if done:
            runner.graph.change(one, steps_done=one.row.steps_done + 1)
    elif outcome == "done":
        runner.graph.change(
            one, S.SUCCEEDED, output=runner.ledger.encode(decided.get("output"), "answer"), error=None, reason=""
        )
        runner.graph.settle(one)
        return
    if outcomes.failing(runner, one):
        outcomes.cancel(runner, one)
    else:
        runner.graph.ready(one, reason="")
