"""Rollback: compensates what succeeded in a scope, in the reverse order of success, one at a time.

A compensation is an intent and an outcome in the journal like a call, and is repeated under its own key until its
outcome is known. One that fails for good is recorded and reported, and the others still run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from midstream.plans import inputs, outcomes, recovery
from midstream.plans.calls import Outcome, Raised, Returned, Unknown
from midstream.plans.errors import Failure, Kind, Permanent
from midstream.plans.handlers import Handler
from midstream.plans.instances import Instance, Shape
from midstream.plans.states import ENDED, UNDONE, NodeState, Phase, RunStatus
from midstream.plans.values import refs_in, resolve

if TYPE_CHECKING:
    from midstream.plans.runner import Runner

S, R = NodeState, RunStatus
KEEP = "cancel_keep"
"""Purpose of a cancellation that leaves what succeeded as it is."""
FALLBACK, FAILED = "fallback", "failed"
"""Purposes of a compensation before something takes over from a failed call: its fallback, or a plan without it."""
RETURN, PAUSE = "return:", "pause:"
"""Purposes of a rollback to the savepoint that follows: going on from there, or waiting to be resumed."""


def target_of(purpose: str) -> str | None:
    """The savepoint a rollback returns to; None when it is of the whole scope."""
    for start in (RETURN, PAUSE):
        if purpose.startswith(start):
            return purpose.removeprefix(start)
    return None


def begin(runner: Runner, owner: Instance) -> None:
    """A scope is quiet: compensate it, or end it where its plan does not."""
    purpose = owner.row.purpose
    wanted = purpose not in ("fail", KEEP) or (purpose == "fail" and _compensates(runner, owner))
    after = _finished(runner, target_of(purpose))
    owner.undo = runner.graph.to_undo(owner, lambda one: undoable(runner, one), after) if wanted else []
    if owner is runner.graph.root and (owner.undo or purpose not in ("fail", "cancel", KEEP)):
        runner.ledger.change_run(R.ROLLING_BACK)
    proceed(runner, owner)


def _compensates(runner: Runner, owner: Instance) -> bool:
    """Whether the plan of a scope that failed wants what succeeded in it undone."""
    if owner is runner.graph.root:
        return runner.graph.compiled.plan.on_failure == "compensate"
    inner = owner.frame.compiled.plan if owner.shape is Shape.PLAN and owner.frame is not None else None
    return inner is not None and inner.on_failure == "compensate"


def _finished(runner: Runner, savepoint: str | None) -> int:
    """The place of a savepoint in the order of success; 0 without one."""
    if savepoint is None:
        return 0
    frame = runner.graph.root.frame
    assert frame is not None
    # A plan names each savepoint once.
    return next(one.row.finished for one in frame.instances.values() if one.node.savepoint == savepoint)


def proceed(runner: Runner, owner: Instance) -> None:
    """Start the scope's next compensation, or end the scope after the last."""
    if not owner.undo:
        finish(runner, owner)
        return
    if runner.draining:
        return  # who resumes the run goes on with the rest
    one = owner.undo.pop()
    _begin_undo(runner, one)


def _begin_undo(runner: Runner, one: Instance, **values: Any) -> None:
    """Call the compensation of `one`, or call it again after the worker died. One that may be what kills workers is
    called as often as a node."""
    if one.state is S.COMPENSATING:
        values["undo_recoveries"] = died = one.row.undo_recoveries + 1
        if died > runner.graph.compiled.plan.budgets.recoveries:
            message = f"its worker died {died} times while it ran"
            take(runner, one, Raised(Failure(Kind.PERMANENT, "WorkerDied", message)))
            return
    else:
        values |= {name: 0 for name in ("undo_retries", "undo_recoveries") if getattr(one.row, name)}
        values["state"] = S.COMPENSATING
    runner.graph.change(one, undo_starts=one.row.undo_starts + 1, **values)
    start(runner, one)


def undoable(runner: Runner, one: Instance) -> bool:
    """Whether the node's compensation is to undo what a call that failed may have done."""
    undo = one.node.compensate
    if undo is None or not undo.partial or not one.is_body or one.shape is not Shape.CALL:
        return False
    return one.scope not in one.row.undone and _acted(runner, one, [one.scope])


def before_takeover(runner: Runner, one: Instance, purpose: str) -> None:
    """Compensate `one`, which failed, before something takes over from it. `purpose` says what that is."""
    if runner.row.status is R.WAITING:
        runner.ledger.change_run(R.RUNNING)
    if runner.draining:
        runner.graph.change(one, S.COMPENSATING, purpose=purpose)  # who resumes the run calls the compensation
    else:
        _begin_undo(runner, one, purpose=purpose)


def resume_takeover(runner: Runner, one: Instance) -> None:
    """The worker died, or drained, before the compensation of `one` had ended: call it again under the same key."""
    if one.row.purpose in (FALLBACK, FAILED):
        _begin_undo(runner, one)


def _take_over(runner: Runner, one: Instance) -> None:
    """`one` is undone as far as it could be, and what was to take over from it does."""
    graph, purpose, undone = runner.graph, one.row.purpose, one.state is S.COMPENSATED
    if outcomes.failing(runner, one):
        graph.change(one, None if undone else S.FAILED, purpose="")
        graph.check_quiet(graph.scope_of(one))
    elif purpose == FALLBACK and undone:
        graph.change(one, S.PENDING)
        outcomes.next_fallback(runner, one, one.row.error)
    else:  # a fallback does not start beside what could not be undone
        graph.change(one, S.FAILED, purpose="")
        graph.failed(one)


def start(runner: Runner, one: Instance) -> None:
    """Call the compensation of `one`."""
    undo = one.node.compensate
    assert undo is not None
    handler, migrate = recovery.find_handler(runner.services.handlers, undo.handler)

    async def call(written: asyncio.Future[None] | None) -> Outcome:
        try:
            args = handler.parse(migrate(await _arguments(runner, one, handler)))
        except Permanent as error:
            return Raised(Failure.of(error))
        if written is not None:
            await asyncio.shield(written)
        timeout_s = undo.timeout_s or handler.timeout_s
        return await runner.call(one, handler, args, f"{runner.key(one)}/undo", timeout_s)

    runner.spawn(one, call)


def _start_again(runner: Runner, one: Instance) -> None:
    if not runner.draining:
        start(runner, one)


async def _arguments(runner: Runner, one: Instance, handler: Handler) -> dict[str, Any]:
    """The compensation's own arguments, and those of the node, its output and its error where the handler has
    parameters of these names."""
    undo = one.node.compensate
    assert undo is not None
    heads = {ref.head for ref in refs_in(undo.args)} | (handler.parameters.keys() - undo.args.keys())
    known: dict[str, Any] = {"error": one.row.error}
    if "output" in heads:
        known["output"] = await runner.payloads.load(one.row.output) if one.row.output else None
    if "args" in heads:
        given = one.node.args if one.shape is Shape.PLAN else runner.call_of(one)[1]
        known["args"] = await inputs.arguments(runner.payloads, one, given, runner.row.input)
    if "input" in heads:
        known["input"] = (await inputs.lookup(runner.payloads, one, [{"$ref": "input"}], runner.row.input))("input")
    filled = {
        name: known[name] for name in handler.parameters if name in known and name not in undo.args and name != "input"
    }
    return {**filled, **resolve(undo.args, known.__getitem__)}


def take(runner: Runner, one: Instance, outcome: Outcome) -> None:
    """A compensation of `one` came to an end."""
    graph, undo = runner.graph, one.node.compensate
    assert undo is not None
    owner = graph.scope_of(one)
    match outcome:
        case Returned():
            graph.change(one, S.COMPENSATED, undone=[*one.row.undone, one.scope])
            if one.row.purpose in (FALLBACK, FAILED):
                _take_over(runner, one)
            else:
                proceed(runner, owner)
            return
        case Raised(failure) | Unknown(failure):
            pass
        case _:
            failure = Failure(
                Kind.PERMANENT, "PlanError", "a compensation cannot wait, and its steps cannot be in doubt"
            )
    again = failure.kind is Kind.TRANSIENT and one.row.undo_retries + 1 < undo.retry.attempts
    if again:
        wait_s = outcomes.backoff_s(runner, undo.retry, one.row.undo_retries)
        graph.change(one, undo_retries=one.row.undo_retries + 1, undo_error=failure.as_json())
        runner.after(wait_s, lambda: _start_again(runner, one), lambda: one.state is S.COMPENSATING)
    elif one.row.purpose in (FALLBACK, FAILED):
        graph.change(one, undo_error=failure.as_json())
        _take_over(runner, one)
    else:
        graph.change(one, S.COMPENSATION_FAILED, undo_error=failure.as_json())
        proceed(runner, owner)


def finish(runner: Runner, owner: Instance) -> None:
    """A scope is undone as far as it could be: end it, or go on from the savepoint."""
    graph = runner.graph
    graph.close_undone(owner)
    if owner is not graph.root:
        _fail_container(runner, owner)
        return
    states = {one.state for one in graph.descendants(owner)}
    failed = S.COMPENSATION_FAILED in states
    purpose = owner.row.purpose
    if target_of(purpose) is not None and not failed:
        _go_on(runner, owner, paused=purpose.startswith(PAUSE))
        return
    if owner.state is S.RUNNING:
        graph.change(owner, S.CANCELLED if purpose in ("cancel", KEEP) else S.FAILED, phase=Phase.FORWARD)
    elif owner.state not in UNDONE:
        graph.change(owner, S.COMPENSATING)
        graph.change(owner, S.COMPENSATION_FAILED if failed else S.COMPENSATED, phase=Phase.FORWARD)
    if purpose == "fail" and (not _compensates(runner, owner) or states.isdisjoint(UNDONE)):
        status = R.FAILED
    elif failed:
        status = R.ROLLBACK_FAILED
    else:
        status = R.CANCELLED if purpose in ("cancel", KEEP) else R.ROLLED_BACK
    runner.ledger.change_run(status, error=owner.row.error, remains=_remaining(runner))


def _fail_container(runner: Runner, owner: Instance) -> None:
    """A sub-plan, map or loop failed and is undone: its fallback, or what it is part of fails."""
    error = owner.row.error or Failure(Kind.PERMANENT, "Failed", "").as_json()
    # A fallback does not start beside what could not be undone.
    clean = not any(runner.graph.holds_failed_compensation(one) for one in owner.children)
    if clean and not outcomes.failing(runner, owner) and outcomes.fall_back(runner, owner, Failure.from_json(error)):
        return
    state = S.CANCELLED if owner.row.purpose == "cancel" else S.FAILED
    runner.graph.change(owner, state, phase=Phase.FORWARD, error=error)
    runner.graph.failed(owner)


def _go_on(runner: Runner, root: Instance, paused: bool) -> None:
    """Return to a savepoint: what came after it is pending again, under a new generation."""
    graph, frame = runner.graph, root.frame
    assert frame is not None
    after = _finished(runner, target_of(root.row.purpose))
    for one in list(frame.instances.values()):
        if not 0 < one.row.finished <= after or one.state is not S.SUCCEEDED:
            graph.reset(one)
    graph.change(root, phase=Phase.FORWARD, purpose="", error=None)
    if root.state is not S.RUNNING:
        graph.change(root, S.PENDING)
        graph.change(root, S.READY)
        graph.change(root, S.RUNNING)
    runner.ledger.change_run(R.PAUSED if paused else R.RUNNING, error=None, output="")
    graph.release_pending(frame)


def _remaining(runner: Runner) -> list[str]:
    """Paths of calls whose effects remain after the rollback."""
    remaining: list[str] = []
    for one in runner.graph.descendants(runner.graph.root):
        if one.shape is not Shape.CALL or one.planner:
            continue
        if one.state is S.COMPENSATION_FAILED or _has_effects_left(runner, one):
            remaining.append(one.path)
        elif one.state is S.SUCCEEDED and not _covered(one):
            found = runner.services.handlers.get(one.row.handler)
            if one.node.irreversible or found is None or found.effects != "none":
                remaining.append(one.path)
    return sorted(remaining)


def _has_effects_left(runner: Runner, one: Instance) -> bool:
    """Whether a call may have done a part of its work that was not undone: one that then failed, or whose fallback was
    taken."""
    ended = one.state in (S.FAILED, S.CANCELLED) and not _covered(one)
    scopes = [f"{one.row.generation}.{choice}" for choice in range(one.row.choice + ended)]
    return _acted(runner, one, [scope for scope in scopes if scope not in one.row.undone])


def _acted(runner: Runner, one: Instance, scopes: Collection[str]) -> bool:
    """Whether calls of `one` in these scopes that failed may have had a part of their effect: a step was done, or may
    have been, or a person said that the call, which was in doubt, failed."""
    rows = [row for row in runner.ledger.steps.get(one.path, {}).values() if row.scope in scopes]
    steps = [row.state for row in rows if row.kind == "step" and row.effects != "none"]
    return "done" in steps or "intent" in steps or any(row.state == "failed" for row in rows)


def _covered(one: Instance) -> bool:
    """Whether the compensation of something above undid `one`."""
    above = one.parent
    while above is not None:
        if above.state is S.COMPENSATED and above.node.compensate is not None and above.is_body:
            return True
        above = above.parent
    return False


def request(runner: Runner, to: str | None) -> str:
    """Roll the run back, to a savepoint or wholly; returns what is wrong with that, or nothing."""
    graph, row = runner.graph, runner.row
    root, frame = graph.root, graph.root.frame
    if frame is None or root.row.phase is not Phase.FORWARD:
        return "the run has not begun, or rolls back already"
    if row.status is R.ROLLED_BACK:
        return "the run was rolled back already"
    purpose = "rollback"
    if to is not None:
        reached = [one for one in frame.instances.values() if one.node.savepoint == to]
        if not any(one.state is S.SUCCEEDED for one in reached):
            return f"the run has not reached a savepoint '{to}'"
        if root.state in (S.COMPENSATION_FAILED, S.COMPENSATED):
            return "the run was rolled back already; fork it to run it again"
        purpose = PAUSE + to
    if row.status in ENDED or row.status is R.PAUSED:
        runner.ledger.change_run(R.ROLLING_BACK)
    error = root.row.error or Failure(Kind.PERMANENT, "RolledBack", "it was asked to roll back").as_json()
    graph.fail_scope(root, error, purpose)
    return ""
