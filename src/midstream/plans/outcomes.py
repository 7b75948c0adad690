"""What a call came to, and what follows: success, retry, correction, fallback, failure, a wait, or a doubt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from midstream.core import clock
from midstream.plans import calls, inputs, questions, recovery, undoing
from midstream.plans.calls import Found, Outcome, Raised, Returned, StepUnknown, Unknown, Waits
from midstream.plans.errors import Failure, Kind, Permanent
from midstream.plans.handlers import Handler
from midstream.plans.instances import RESOLVE, Instance, Shape
from midstream.plans.plan import Retry
from midstream.plans.port import RunnerPort
from midstream.plans.states import NodeState, Phase
from midstream.store.exact_json import to_json

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S = NodeState
LOST = Failure(Kind.TRANSIENT, "WorkerDied", "its worker died while it ran")
FRESH: dict[str, Any] = {
    "retries": 0,
    "corrections": 0,
    "recoveries": 0,
    "feedback": [],
    "steps_done": 0,
    "reason": "",
    "phase": Phase.FORWARD,
    "purpose": "",
    "undo_retries": 0,
    "undo_recoveries": 0,
    "undo_error": None,
}
"""Fields with which a fallback begins."""


def take(runner: Runner, one: Instance, outcome: Outcome) -> None:
    """Change the graph by the outcome of a call of `one`."""
    if one.state is S.COMPENSATING:
        undoing.take(runner, one, outcome)
        return
    if one.state is not S.RUNNING:
        return
    match outcome:
        case Returned(text):
            succeed(runner, one, text)
        case Raised(failure) if failure.kind is Kind.TRANSIENT and one.resolving:
            doubt(runner, one, failure)  # an earlier attempt may still have had its effect
        case Raised(failure):
            fail(runner, one, failure)
        case Unknown(failure):
            doubt(runner, one, failure)
        case Waits(rows) if not failing(runner, one):
            runner.graph.change(one, S.WAITING)
            for row in rows:
                questions.open_row(runner, row)
            questions.wake(runner, one)
        case Waits():
            _cancel(runner, one)
        case StepUnknown(key):
            questions.ask_doubt(runner, one, key)
        case Found(finding) if finding.happened:
            handler = recovery.find_handler(runner.services.handlers, runner.call_of(one)[0])[0]
            try:
                succeed(runner, one, to_json(handler.dump(finding.output), f"what the probe of '{one.path}' found"))
            except Exception as error:
                fail(runner, one, Failure.of(error))
        case Found(finding) if finding.happened is None:
            questions.ask_doubt(runner, one)
        case Found():
            runner.graph.change(one, reason="")
            if failing(runner, one):
                _cancel(runner, one)
            elif worn_out(runner, one):
                fail(runner, one, died(one))
            else:
                runner.graph.ready(one)


def worn_out(runner: Runner, one: Instance) -> bool:
    """Whether the worker of `one` died more often than the plan's budget allows: `one` may be what kills it."""
    return one.row.recoveries > runner.graph.compiled.plan.budgets.recoveries


def died(one: Instance) -> Failure:
    """The failure of a node that is worn out."""
    return Failure(Kind.PERMANENT, "WorkerDied", f"its worker died {one.row.recoveries} times while it ran")


def failing(runner: Runner, one: Instance) -> bool:
    """Whether a scope that `one` is in is coming to its end: only what resolves a doubt still runs there."""
    return runner.graph.scope_of(one).row.phase is not Phase.FORWARD


def succeed(runner: Runner, one: Instance, text: str) -> None:
    """`one` succeeded with this output, as JSON text."""
    output = runner.ledger.encode_output(text)
    runner.graph.change(one, S.SUCCEEDED, output=output, **_cleared(one))
    runner.graph.settle(one)


def _cleared(one: Instance) -> dict[str, Any]:
    blank: dict[str, Any] = {"error": None, "reason": "", "wake_at": None, "wait_s": None, "feedback": []}
    return {name: value for name, value in blank.items() if getattr(one.row, name) != value}


def fail(runner: Runner, one: Instance, failure: Failure) -> None:
    """An attempt of `one` failed without effect. Tries, in this order and by separate budgets: again after a backoff,
    again with feedback, the next fallback; otherwise `one` has failed."""
    graph, row, retry = runner.graph, one.row, one.node.retry
    error = failure.as_json()
    if failing(runner, one):
        _end(runner, one, error)
    elif failure.kind is Kind.TRANSIENT and row.retries + 1 < retry.attempts and runner.use("retries"):
        retry_later(runner, one, failure)
    elif failure.kind is Kind.CORRECTABLE and row.corrections < retry.corrections:
        feedback = [*row.feedback, failure.message]
        graph.ready(one, corrections=row.corrections + 1, feedback=feedback, error=error, reason="")
    elif failure.kind is not Kind.FATAL and fall_back(runner, one, failure):
        pass
    elif failure.kind is Kind.FATAL:
        graph.change(one, S.FAILED, error=error, reason="")
        graph.fail_scope(graph.root, error)
    else:
        _end(runner, one, error)


def _end(runner: Runner, one: Instance, error: dict[str, str]) -> None:
    runner.graph.change(one, S.FAILED, error=error, reason="")
    if not failing(runner, one) and _goes_on(runner, one) and undoing.undoable(runner, one):
        undoing.before_takeover(runner, one, undoing.FAILED)
    else:
        runner.graph.failed(one)


def _goes_on(runner: Runner, one: Instance) -> bool:
    """Whether the run may go on without `one`: by a new plan, or because the node is allowed to fail."""
    node = one.node
    tolerated = node.map is not None and node.map.min_succeeded is not None
    return node.on_failure == "continue" or tolerated or runner.graph.compiled.plan.replan is not None


def fall_back(runner: Runner, one: Instance, failure: Failure) -> bool:
    """Let the node's next fallback take over, once what the node may have done is undone; False when it has none left,
    or the plan's budget is used up. A step in doubt that no compensation would undo is asked about first."""
    if one.row.choice >= len(one.node.fallback) or not one.is_body:
        return False
    undoable = undoing.undoable(runner, one)
    open_steps = [] if undoable or one.shape is not Shape.CALL else questions.steps_in_doubt(runner, one)
    if open_steps and one.state is S.RUNNING:
        runner.graph.change(one, error=failure.as_json())
        questions.ask_doubt(runner, one, open_steps[0].key)
        return True
    if not runner.use("fallbacks"):
        return False
    if undoable:
        runner.graph.change(one, S.FAILED, error=failure.as_json(), reason="")
        undoing.before_takeover(runner, one, undoing.FALLBACK)
    else:
        next_fallback(runner, one, failure.as_json())
    return True


def next_fallback(runner: Runner, one: Instance, error: dict[str, str] | None) -> None:
    """Make the node's next fallback ready."""
    changed = {name: value for name, value in FRESH.items() if getattr(one.row, name) != value}
    runner.graph.ready(one, choice=one.row.choice + 1, error=error, **changed)


def backoff_s(runner: Runner, retry: Retry, retries: int) -> float:
    """Seconds before the next attempt after `retries` retries: first_s factor^retries, at most longest_s, of which the
    share `jitter` is random."""
    wait_s = min(retry.first_s * retry.factor ** min(retries, 1000), retry.longest_s)
    return wait_s * (1.0 - retry.jitter * runner.services.random.random())


def retry_later(runner: Runner, one: Instance, failure: Failure, reason: str = "") -> None:
    """Run `one` again after its backoff."""
    wait_s = backoff_s(runner, one.node.retry, one.row.retries)
    runner.graph.change(
        one,
        S.RETRYING,
        retries=one.row.retries + 1,
        error=failure.as_json(),
        reason=reason,
        wake_at=clock.time() + wait_s,
        wait_s=wait_s,
    )
    arm_retry(runner, one)


def arm_retry(runner: Runner, one: Instance) -> None:
    """Make `one` ready when its backoff is over."""

    def end() -> None:
        if one.state is S.RETRYING:
            runner.graph.ready(one)

    seconds = questions.remaining(one.row.wake_at, one.row.wait_s)
    runner.after(seconds, end, lambda: one.state is S.RETRYING)


def doubt(runner: Runner, one: Instance, failure: Failure) -> None:
    """A call of `one` ended without saying whether it had its effect."""
    handler = recovery.find_handler(runner.services.handlers, runner.call_of(one)[0])[0]
    row = one.row
    if handler.effects in ("none", "steps"):
        open_step = next(iter(questions.steps_in_doubt(runner, one)), None)
        if not failing(runner, one):
            fail(runner, one, failure)  # it may run again: what its steps did is remembered
        elif open_step is None:
            _cancel(runner, one)
        else:
            questions.ask_doubt(runner, one, open_step.key)
    elif handler.effects == "idempotent" and row.retries + 1 < one.node.retry.attempts and runner.use("retries"):
        retry_later(runner, one, failure, RESOLVE)
    else:
        investigate(runner, one, handler)


def investigate(runner: Runner, one: Instance, handler: Handler) -> None:
    """Find out whether a call of `one` had its effect: by the handler's probe, or else by a person."""
    if handler.probe is None:
        questions.ask_doubt(runner, one)
        return
    args = runner.call_of(one)[1]
    migrate = recovery.find_handler(runner.services.handlers, runner.call_of(one)[0])[1]

    async def look(written: asyncio.Future[None] | None) -> Outcome:
        try:
            given = handler.parse(migrate(await inputs.arguments(runner.payloads, one, args, runner.row.input)))
        except Permanent as error:
            return Raised(Failure.of(error))
        context = RunnerPort(runner, one).context(handler, runner.key(one))
        return await calls.probe(handler, given, context, runner.services.threads)

    runner.spawn(one, look)


def _cancel(runner: Runner, one: Instance) -> None:
    runner.graph.change(one, S.CANCELLED, reason="its scope failed")
    runner.graph.check_quiet(runner.graph.scope_of(one))


def cancel(runner: Runner, one: Instance) -> None:
    """Cancel `one`, whose effect did not happen, in a scope that comes to its end."""
    _cancel(runner, one)


def filled(runner: Runner, one: Instance, handler: Handler) -> dict[str, Any]:
    """Arguments that the executor fills in for a handler that writes new plans."""
    from midstream.plans.revision import planner_arguments

    return planner_arguments(runner, handler) if one.planner else {}
