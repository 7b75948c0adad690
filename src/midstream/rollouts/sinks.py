"""`TrajectorySink`, which records trajectories, and `LocalSink`, which records in a store in this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import sqlalchemy as sa

from midstream.agents.endpoint import AgentEndpoint
from midstream.agents.plan_journal import KEPT, RUN
from midstream.agents.resume import IN_DOUBT
from midstream.core.failures import failure_of
from midstream.core.types import Status, Step, Trajectory
from midstream.plans.history import discard
from midstream.record import action_log, schema
from midstream.record.action_log import ActionLog
from midstream.record.recorder import Recorder
from midstream.record.store import Store
from midstream.rollouts.attempts import Attempt
from midstream.store import Database
from midstream.store.exact_json import from_json
from midstream.store.writer import Operation


@dataclass(frozen=True, slots=True)
class Earlier:
    """The record of an earlier process about an attempt that can be resumed."""

    database: Database
    """Database for durable state of the flow."""
    actions: ActionLog
    steps: tuple[Step, ...] = ()
    """Answered model calls, in order."""
    ended: Trajectory | None = None
    """The trajectory if the attempt has ended; then it is not repeated."""

    @property
    def begun(self) -> bool:
        """Whether anything was recorded."""
        return bool(self.steps or self.actions.names)


class TrajectorySink(Protocol):
    """Records attempts. `begin` and `finish` raise `EngineError` when the recording service cannot be reached."""

    def recorder(self, attempt: Attempt) -> Recorder:
        """Return the recorder for the model calls of `attempt`."""
        ...

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        """Return the endpoint whose calls this sink records; None if the worker's endpoint is used."""
        ...

    async def begin(self, attempt: Attempt) -> None: ...

    def earlier(self, attempt: Attempt) -> Earlier | None:
        """Return the record of a begun `attempt`, to resume it; None if this sink does not resume attempts."""
        ...

    async def restart(self, attempt: Attempt) -> None:
        """Delete the record of a begun `attempt`, which starts again."""
        ...

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None: ...

    def forget(self, attempt: Attempt) -> None:
        """Release the state of a begun `attempt`, finished or not. Called once per attempt."""
        ...


class LocalSink:
    """Records in `store`, or in memory only if it is None. With `resume`, an attempt whose process died is resumed, and
    one that has ended is not repeated; otherwise both are replaced. With `retry_failed`, one that ended by a failure is
    replaced too, unless an action of it is in doubt."""

    def __init__(self, store: Store | None, *, resume: bool = False, retry_failed: bool = False) -> None:
        self._store, self._resume, self._retry_failed = store, resume and store is not None, retry_failed
        self._earlier: dict[str, Earlier] = {}
        self._leftover = False
        """Whether the store may have actions of attempts that are now replaced without being resumed."""
        if store is not None and self._resume:
            store.database.require(action_log.SCHEMA)
        elif store is not None:
            self._leftover = action_log.has_actions(store.database)

    def recorder(self, attempt: Attempt) -> Recorder:
        return Recorder(attempt.uid, attempt.prompt_uid, seed=attempt.seed, store=self._store, channel=attempt.channel)

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        return None

    async def begin(self, attempt: Attempt) -> None:
        if self._store is None:
            return
        if self._resume:
            found = await asyncio.to_thread(_earlier, self._store, attempt, self._retry_failed)
            self._earlier[attempt.uid] = found
            if found.ended is not None:
                await self._delete_actions(self._store, attempt)  # of a version that deleted them separately
                return
            if found.begun:
                return
        await self.restart(attempt)

    def earlier(self, attempt: Attempt) -> Earlier | None:
        return self._earlier.get(attempt.uid)

    async def restart(self, attempt: Attempt) -> None:
        if self._store is None:
            return
        if self._resume or self._leftover:
            await self._delete_actions(self._store, attempt)
        if self._resume:
            database = self._store.database
            self._earlier[attempt.uid] = Earlier(database, ActionLog(database, attempt.uid))
        self._store.trajectories.begin(
            attempt.uid, attempt.prompt_uid, attempt.task, attempt.channel, attempt.train_step
        )

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None:
        if self._store is not None:
            # In one transaction, which completes even if this is cancelled: no action outlives its attempt.
            delete = _deletion(attempt.uid) if self._resume else None
            await self._store.trajectories.finish(trajectory, attempt.channel, also=delete)

    def forget(self, attempt: Attempt) -> None:
        self._earlier.pop(attempt.uid, None)

    async def _delete_actions(self, store: Store, attempt: Attempt) -> None:
        await store.database.submit(_deletion(attempt.uid))


def _deletion(uid: str) -> Operation[None]:
    """A write that deletes the actions of an attempt, and the plans that it left behind."""
    return lambda transaction: _delete(transaction.connection, uid)


def _delete(connection: sa.Connection, uid: str) -> None:
    for action in action_log.load_actions(connection, uid):
        if action.key.startswith(RUN) and action.done:
            kept = KEPT in from_json(action.request)
            discard(connection, from_json(action.result), ended=not kept)
    action_log.delete_actions(connection, uid)


def delete_unowned_actions(store: Store) -> None:
    """Delete the actions and plans of attempts whose running trajectory is no longer in the store."""
    if not action_log.has_actions(store.database):
        return

    def delete(connection: sa.Connection) -> None:
        for uid in action_log.attempts_with_actions(connection):
            found = schema.trajectories.c
            running = sa.select(found.uid).where(found.uid == uid, found.status == Status.RUNNING)
            if connection.execute(running).first() is None:
                _delete(connection, uid)

    store.database.change(delete)


def _earlier(store: Store, attempt: Attempt, retry_failed: bool) -> Earlier:
    """Read the record of `attempt`. A trajectory of another task with the same uid is ignored, and with `retry_failed`
    one that failed."""
    database = store.database
    found = store.trajectories.find(attempt.uid)
    if found is None or found.trajectory.task != attempt.task or found.trajectory.prompt_uid != attempt.prompt_uid:
        return Earlier(database, ActionLog(database, attempt.uid))
    if retry_failed and failure_of(found.trajectory) is not None and IN_DOUBT not in found.trajectory.metadata:
        return Earlier(database, ActionLog(database, attempt.uid))
    known = database.read(lambda connection: action_log.load_actions(connection, attempt.uid))
    ended = None if found.trajectory.status is Status.RUNNING else found.trajectory
    return Earlier(database, ActionLog(database, attempt.uid, known), found.trajectory.steps, ended)
