"""`AgentFlowManager` runs many attempts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from midstream.core.garbage import rare_collections
from midstream.core.types import Trajectory
from midstream.rollouts.attempts import Attempt
from midstream.rollouts.worker import AgentFlowWorker

RunOne = Callable[[Attempt], Coroutine[Any, Any, Trajectory]]


class AgentFlowManager:
    """Runs up to `concurrency` attempts at once.

    `in_order` runs them in fixed cohorts of that size, so that the composition of a batch never depends on timing."""

    def __init__(self, worker: AgentFlowWorker, *, concurrency: int = 64, in_order: bool = False) -> None:
        self._worker, self._concurrency, self._in_order = worker, concurrency, in_order

    @property
    def roles(self) -> dict[str, bool]:
        """See `AgentFlowWorker.roles`."""
        return self._worker.roles

    async def run(
        self,
        attempts: Sequence[Attempt],
        *,
        temperature: float | None = None,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """Return one trajectory per attempt, in the order of `attempts`. `on_done` is called with each when it ends.

        `temperature` overrides every role's. The first `UserError` stops the rollout and is raised."""

        async def one(attempt: Attempt) -> Trajectory:
            trajectory = await self._worker.run(attempt, temperature=temperature)
            if on_done is not None:
                on_done(trajectory)
            return trajectory

        with rare_collections():
            return await (self._cohorts if self._in_order else self._when_free)(attempts, one)

    async def _cohorts(self, attempts: Sequence[Attempt], one: RunOne) -> list[Trajectory]:
        done: list[Trajectory] = []
        for start in range(0, len(attempts), self._concurrency):
            cohort = attempts[start : start + self._concurrency]
            # All join before any starts, because the engine waits for every member of a cohort.
            for attempt in cohort:
                for engine in self._worker.engines:
                    engine.join(attempt.uid)
            done += await _gather([one(attempt) for attempt in cohort])
        return done

    async def _when_free(self, attempts: Sequence[Attempt], one: RunOne) -> list[Trajectory]:
        free = asyncio.Semaphore(self._concurrency)

        async def when_free(attempt: Attempt) -> Trajectory:
            async with free:
                return await one(attempt)

        return await _gather([when_free(attempt) for attempt in attempts])


async def _gather(runs: Sequence[Coroutine[Any, Any, Trajectory]]) -> list[Trajectory]:
    """Return all results in order; the first error cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except ExceptionGroup as errors:
        # An error that stops a rollout would stop every attempt, so one is enough.
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
