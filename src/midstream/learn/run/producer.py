"""Produces the sampled batch of each training step in order, at most `rollout.steps_ahead` steps ahead of learning."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from midstream.learn.data.batch import check_log_probs
from midstream.learn.data.collect import Collected, collect
from midstream.learn.data.replay import ReplayEntry
from midstream.learn.data.source import GroupSource
from midstream.learn.run.checkpoint import TrainState
from midstream.learn.run.failures import check_failures
from midstream.learn.run.setup import TrainingContext
from midstream.record.store import Store
from midstream.tasks.curriculum import Progress


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """The groups of training step `step`.

    Samples are of policy `version` or later; only replayed groups and groups of a store may be older. The policy's
    engine sampled `tokens` and computed `prefilled_tokens` of prompts in `rollout_s` seconds. Both count all that the
    engine did meanwhile: with `rollout.steps_ahead`, also an evaluation that ran at the same time.
    """

    step: int
    version: int
    collected: Collected
    tokens: int
    prefilled_tokens: int
    rollout_s: float


class BatchProducer:
    """A bounded queue of batches for the training steps after `state`.

    It owns what sampling carries from step to step: the position in the task order, pass rates, and the replay buffer.
    `source` provides groups recorded elsewhere; without one, groups are sampled here and recorded in `store`.
    """

    def __init__(
        self, context: TrainingContext, store: Store, state: TrainState, source: GroupSource | None = None
    ) -> None:
        self._context, self._store, self._source = context, store, source
        self._begun = state.step
        self._start = Progress(state.position, state.seen), state.replay
        self._newest: asyncio.Task[SampledBatch] | None = None
        self._queue: deque[asyncio.Task[SampledBatch]] = deque()

    async def next(self) -> SampledBatch:
        """Return the batch of the next training step, once all earlier steps have updated the policy.

        Begins later batches, up to `rollout.steps_ahead` of them: a batch is begun only when the step `steps_ahead + 1`
        before it is done, which bounds the age of its samples. Raises what sampling raises.
        """
        config = self._context.config
        while len(self._queue) <= config.rollout.steps_ahead and self._begun < config.trainer.max_steps:
            self._begun += 1
            # The version is read here because nothing is being learned now.
            version = self._context.decoder.version
            self._newest = asyncio.create_task(self._produce(self._begun, version, self._newest))
            self._queue.append(self._newest)
        return await self._queue.popleft()

    async def close(self) -> None:
        """Cancel the batches under way; a resumed run samples them again."""
        for task in self._queue:
            task.cancel()
        await asyncio.gather(*self._queue, return_exceptions=True)
        self._queue.clear()

    async def _produce(self, step: int, version: int, previous: asyncio.Task[SampledBatch] | None) -> SampledBatch:
        progress, replay = self._start if previous is None else _end_of(await previous)
        context, engine = self._context, self._context.engine
        began = time.perf_counter()
        sampled, prefilled = engine.tokens_sampled, engine.tokens_prefilled
        collected = await collect(context, self._store, progress, replay, step, version, self._source)
        check_failures(collected.trajectories, context.config.rollout.max_failed, first=step == 1)
        rollout_s = time.perf_counter() - began
        check_log_probs(collected.trajectories)
        return SampledBatch(
            step,
            version,
            collected,
            engine.tokens_sampled - sampled,
            engine.tokens_prefilled - prefilled,
            rollout_s,
        )


def _end_of(batch: SampledBatch) -> tuple[Progress, Sequence[ReplayEntry]]:
    return batch.collected.progress, batch.collected.replay
