"""Greedy evaluations on held-out tasks before, during and after training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from midstream.core.types import Trajectory
from midstream.learn.data.batch import check_log_probs
from midstream.learn.data.samples import sample_row
from midstream.learn.run.callback import Callback
from midstream.learn.run.failures import check_failures
from midstream.learn.run.run_dir import RunDirectory
from midstream.learn.run.setup import TrainingContext
from midstream.record.store import Store
from midstream.rewards.summary import summarise
from midstream.tasks import take

SAMPLES_PER_KIND = 2


class HeldOut:
    """Evaluations of one run, each made and logged once under its label. A resumed run makes the missing ones."""

    def __init__(
        self,
        context: TrainingContext,
        directory: RunDirectory,
        store: Store,
        callbacks: Sequence[Callback],
        stopping: Callable[[], bool],
    ) -> None:
        """While `stopping()` is true, due evaluations are left for a resumed run."""
        self._context, self._directory, self._store = context, directory, store
        self._callbacks, self._stopping = callbacks, stopping

    async def before(self) -> None:
        """Evaluate the base model before training."""
        await self._evaluate("base", 0, "test")

    async def after(self, step: int) -> None:
        """Make all evaluations that are due after `step` and not yet logged."""
        config = self._context.config
        trainer = config.trainer
        if step == 0 and config.warm_start.examples:
            await self._evaluate("warm start", 0, "test")
        if trainer.eval_every and step % trainer.eval_every == 0:
            await self._evaluate(f"step {step}", step, "val")
        if step == trainer.max_steps:
            await self._evaluate("final", step, "test")

    @property
    def complete(self) -> bool:
        """Whether the final evaluation exists or none is configured."""
        return not self._context.config.trainer.test_tasks or "final" in self._made()

    def _made(self) -> set[str]:
        return {row["label"] for row in self._directory.rows("evals.jsonl")}

    async def _evaluate(self, label: str, step: int, split: str) -> None:
        trainer = self._context.config.trainer
        count = trainer.val_tasks if split == "val" else trainer.test_tasks
        if not count or self._stopping() or label in self._made():
            return
        began = time.perf_counter()
        tasks = take(self._context.tasks, split, count)
        trajectories = await self._context.evaluate(tasks, label, channel=split, train_step=step, store=self._store)
        check_failures(trajectories, self._context.config.rollout.max_failed)
        check_log_probs(trajectories)
        succeeded = self._context.reward.succeeded
        classes = self._context.config.reward.classes
        row = {"label": label, "step": step, "split": split, **summarise(trajectories, succeeded, classes)}
        if split == "test":
            for trajectory in _samples_by_kind(trajectories):
                sample = sample_row(label, step, trajectory, succeeded(trajectory), self._context.tokenizer.decode)
                self._directory.append("samples.jsonl", sample)
        self._directory.append("evals.jsonl", {**row, "time_s": time.perf_counter() - began})
        for callback in self._callbacks:
            callback.on_eval(row)


def _samples_by_kind(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    seen: dict[str, int] = {}
    chosen: list[Trajectory] = []
    for trajectory in trajectories:
        seen[trajectory.task.kind] = seen.get(trajectory.task.kind, 0) + 1
        if seen[trajectory.task.kind] <= SAMPLES_PER_KIND:
            chosen.append(trajectory)
    return chosen
