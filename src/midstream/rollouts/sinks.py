"""`TrajectorySink`, which records trajectories, and `LocalSink`, which records in a store in this process."""

from __future__ import annotations

from typing import Protocol

from midstream.agents.endpoint import AgentEndpoint
from midstream.core.types import Trajectory
from midstream.record.recorder import Recorder
from midstream.record.store import Store
from midstream.rollouts.attempts import Attempt


class TrajectorySink(Protocol):
    """Records attempts. `begin` and `finish` raise `EngineError` when the recording service cannot be reached."""

    def recorder(self, attempt: Attempt) -> Recorder:
        """Return the recorder for the model calls of `attempt`."""
        ...

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        """Return the endpoint whose calls this sink records; None if the worker's endpoint is used."""
        ...

    async def begin(self, attempt: Attempt) -> None: ...

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None: ...

    def forget(self, attempt: Attempt) -> None:
        """Release the state of a begun `attempt`, finished or not. Called once per attempt."""
        ...


class LocalSink:
    """Records in `store`, or in memory only if it is None."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def recorder(self, attempt: Attempt) -> Recorder:
        return Recorder(attempt.uid, attempt.prompt_uid, seed=attempt.seed, store=self._store, channel=attempt.channel)

    def endpoint(self, attempt: Attempt) -> AgentEndpoint | None:
        return None

    async def begin(self, attempt: Attempt) -> None:
        if self._store is not None:
            self._store.trajectories.begin(
                attempt.uid, attempt.prompt_uid, attempt.task, attempt.channel, attempt.train_step
            )

    async def finish(self, trajectory: Trajectory, attempt: Attempt) -> None:
        if self._store is not None:
            await self._store.trajectories.finish(trajectory, attempt.channel)

    def forget(self, attempt: Attempt) -> None: ...
