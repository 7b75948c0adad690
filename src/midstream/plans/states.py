"""States of nodes and runs, and the transitions between them that are legal.

Every state change goes through `check_node` or `check_run`, so an illegal one is a bug that stops the run before it is
written, never a row that contradicts its history.
"""

from __future__ import annotations

from enum import StrEnum

from midstream.core.errors import MidstreamError


class NodeState(StrEnum):
    """Where a node stands. Only `RUNNING` and `COMPENSATING` nodes execute a handler."""

    PENDING = "pending"
    """Its dependencies have not settled."""
    READY = "ready"
    """May start as soon as limits allow."""
    RUNNING = "running"
    """Its intent is in the journal; its handler runs, or ran when the worker died."""
    WAITING = "waiting"
    """For an answer or a timer. No handler runs meanwhile."""
    RETRYING = "retrying"
    """Waits out the backoff before its next attempt."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Retries, corrections and fallbacks are used up."""
    SKIPPED = "skipped"
    """Its condition was false, or its join can no longer be met."""
    CANCELLED = "cancelled"
    """Not run, because its scope failed or was cancelled."""
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"
    IN_DOUBT = "in_doubt"
    """Whether its effect happened is unknown, and repeating it is not safe: a probe or a person decides."""


class RunStatus(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    """Has work to do. Without a worker that holds its lease it was interrupted: resume it."""
    WAITING = "waiting"
    """Only answers can continue it."""
    PAUSED = "paused"
    """Rolled back to a savepoint on request; resume continues from there."""
    BLOCKED = "blocked"
    """Needs a handler that this process does not have; the error says which, and how to migrate."""
    ROLLING_BACK = "rolling_back"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"
    """Failed or was asked to roll back, and what had succeeded was compensated."""
    ROLLBACK_FAILED = "rollback_failed"
    """At least one compensation failed for good; `rollback` tries those again."""


class Phase(StrEnum):
    """What a scope (the run, or a sub-plan) is doing."""

    FORWARD = "forward"
    SETTLING = "settling"
    """It failed: nothing new starts, and nodes that run or are in doubt come to an end."""
    UNDOING = "undoing"
    """Compensations run."""


N, R = NodeState, RunStatus

NODE_TRANSITIONS: dict[NodeState, frozenset[NodeState]] = {
    N.PENDING: frozenset({N.READY, N.SKIPPED, N.CANCELLED}),
    N.READY: frozenset({N.RUNNING, N.WAITING, N.SKIPPED, N.FAILED, N.CANCELLED, N.PENDING}),
    N.RUNNING: frozenset({N.SUCCEEDED, N.FAILED, N.RETRYING, N.WAITING, N.READY, N.IN_DOUBT, N.CANCELLED}),
    N.WAITING: frozenset({N.READY, N.FAILED, N.CANCELLED}),
    N.RETRYING: frozenset({N.READY, N.CANCELLED}),
    N.IN_DOUBT: frozenset({N.READY, N.SUCCEEDED, N.FAILED, N.CANCELLED}),
    N.SUCCEEDED: frozenset({N.COMPENSATING, N.PENDING}),
    N.FAILED: frozenset({N.PENDING, N.COMPENSATING}),
    N.SKIPPED: frozenset({N.PENDING}),
    N.CANCELLED: frozenset({N.PENDING, N.COMPENSATING}),
    N.COMPENSATING: frozenset({N.COMPENSATED, N.COMPENSATION_FAILED, N.FAILED}),
    N.COMPENSATION_FAILED: frozenset({N.COMPENSATING}),
    N.COMPENSATED: frozenset({N.PENDING, N.FAILED}),
}
"""Legal next states of a node. `FAILED` and `CANCELLED` lead to `COMPENSATING` only where the node may have had an
effect; a node that is compensated before something takes over from it is then `PENDING` for its fallback, or `FAILED`.
Otherwise `PENDING` is re-entered, under a new generation, after a rollback to a savepoint or by a revised plan."""

RUN_TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    R.RUNNING: frozenset(
        {R.WAITING, R.PAUSED, R.BLOCKED, R.ROLLING_BACK, R.SUCCEEDED, R.FAILED, R.CANCELLED, R.ROLLED_BACK}
    ),
    R.WAITING: frozenset({R.RUNNING, R.ROLLING_BACK, R.BLOCKED, R.FAILED, R.CANCELLED}),
    R.PAUSED: frozenset({R.RUNNING, R.ROLLING_BACK, R.BLOCKED, R.CANCELLED}),
    R.BLOCKED: frozenset({R.RUNNING, R.ROLLING_BACK, R.CANCELLED, R.FAILED}),
    R.ROLLING_BACK: frozenset({R.ROLLED_BACK, R.ROLLBACK_FAILED, R.RUNNING, R.PAUSED, R.CANCELLED, R.FAILED}),
    R.SUCCEEDED: frozenset({R.ROLLING_BACK}),
    R.FAILED: frozenset({R.ROLLING_BACK, R.RUNNING}),
    R.CANCELLED: frozenset({R.ROLLING_BACK}),
    R.ROLLED_BACK: frozenset(),
    R.ROLLBACK_FAILED: frozenset({R.ROLLING_BACK}),
}

SETTLED = frozenset({N.SUCCEEDED, N.FAILED, N.SKIPPED, N.CANCELLED})
"""States in which a node's forward execution is over."""
UNDONE = frozenset({N.COMPENSATED, N.COMPENSATION_FAILED})
IDLE = frozenset({N.PENDING, N.READY, N.WAITING, N.RETRYING})
"""States that can be cancelled at once: no handler runs, and no effect is in doubt."""
ENDED = frozenset({R.SUCCEEDED, R.FAILED, R.CANCELLED, R.ROLLED_BACK, R.ROLLBACK_FAILED})


class IllegalTransition(MidstreamError):
    """A bug: a state change that the tables above do not allow. Nothing was written."""


def check_node(path: str, before: NodeState, after: NodeState) -> None:
    """Raise `IllegalTransition` unless node `path` may go from `before` to `after`."""
    if after not in NODE_TRANSITIONS[before]:
        raise IllegalTransition(f"node '{path}' cannot go from {before} to {after}")


def check_run(uid: str, before: RunStatus, after: RunStatus) -> None:
    """Raise `IllegalTransition` unless run `uid` may go from `before` to `after`."""
    if after not in RUN_TRANSITIONS[before]:
        raise IllegalTransition(f"run '{uid}' cannot go from {before} to {after}")
