"""The training loop: steps, logs, evaluates, saves checkpoints, and resumes from one to the same numbers.

All random draws are derived from the seed and from counters in the checkpoint, so a resumed run repeats what the killed
run would have done. Log rows after the last checkpoint are dropped and produced again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from midstream.agents.endpoint import AgentEndpoint
from midstream.core.blocking import run_blocking
from midstream.core.errors import RunError, TrainingError
from midstream.core.secrets import without_secrets
from midstream.engines.base import PolicyEngine
from midstream.engines.torch.compute import compute
from midstream.engines.torch.numerics import Numerics, read_recorded
from midstream.learn.config import TrainConfig
from midstream.learn.data.batch import LearningBatch, trainable_steps
from midstream.learn.data.collect import Group
from midstream.learn.data.source import GroupSource, SourceExhausted
from midstream.learn.data.splits import check_splits
from midstream.learn.losses.mismatch import OwnLogProbs
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.callback import Callback
from midstream.learn.run.checkpoint import TrainState, load_reference, prune, save_checkpoint
from midstream.learn.run.first_update import check_first_update
from midstream.learn.run.held_out import HeldOut
from midstream.learn.run.policy_publisher import PolicyPublisher
from midstream.learn.run.producer import BatchProducer
from midstream.learn.run.resume import resume_state
from midstream.learn.run.run_dir import DISK_FULL, RunDirectory, disk_full_error, run_path
from midstream.learn.run.run_info import RunInfo
from midstream.learn.run.setup import build, check_trained_roles, connect_sampler
from midstream.learn.run.step import update_policy
from midstream.learn.run.tensorboard import TensorBoard
from midstream.learn.run.wandb_log import WandbLog
from midstream.learn.run.warm_start import check_warm_start, collect_lessons, lesson_batches, make_learner
from midstream.record.store import Store
from midstream.rollouts.sinks import delete_unowned_actions

_log = logging.getLogger(__name__)
NUMERICS_SETTINGS = ("policy.numerics", "policy.dtype", "policy.device", "policy.model")
"""Settings that determine the numerics of a run."""


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a run to save and stop: Ctrl-C, and the polite signal of systemd, Slurm and Kubernetes."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Outcome of a run: `status` is `finished` or `stopped`; `final` is the last evaluation on test."""

    run_dir: Path
    status: str
    step: int
    final: dict[str, Any] | None


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    force: bool = False,
    callbacks: Sequence[Callback] = (),
    endpoint: AgentEndpoint | None = None,
) -> TrainResult:
    """Train with `config` until done, or until Ctrl-C or SIGTERM. `endpoint` accepts the calls of black-box agents.
    Raises `UserError` for problems the user can fix; saved data stays intact."""
    training = Training(config, callbacks, resume=resume, force=force, endpoint=endpoint)
    return run_blocking(training.run(), interrupt=training.stop)


class Training:
    """A new or resumed run. Call `run` once."""

    def __init__(
        self,
        config: TrainConfig,
        callbacks: Sequence[Callback] = (),
        *,
        resume: bool = False,
        force: bool = False,
        endpoint: AgentEndpoint | None = None,
    ) -> None:
        self._config, self._callbacks, self._resume, self._force = config, callbacks, resume, force
        self._endpoint = endpoint
        self._run: _Run | None = None

    async def run(self) -> TrainResult:
        """As `train`."""
        directory = RunDirectory(run_path(self._config, self._resume))
        try:
            self._check(directory)
            self._run = _Run(self._config, directory, self._callbacks, self._endpoint)
            return await self._run.go()
        except OSError as error:
            # Logs and checkpoints raise their own errors; this one came from elsewhere, such as tensorboard.
            if error.errno not in DISK_FULL:
                raise
            raise disk_full_error(directory.path, error) from None
        finally:
            directory.release()

    def stop(self) -> None:
        """Save and stop after the current training step. Raises KeyboardInterrupt when called again, or before the
        start."""
        if self._run is None:
            raise KeyboardInterrupt
        self._run.stop()

    def _check(self, directory: RunDirectory) -> None:
        if not directory.started:
            if self._resume:
                _log.warning("there is no run in '%s' to resume: this one begins at step 0", directory.path)
            return
        if not self._resume:
            raise RunError(
                f"there is a run in '{directory.path}' already",
                "continue it with --resume, or give this one another trainer.run_dir",
            )
        changes = directory.config_changes(self._config.model_dump(mode="json"))
        if changes and not self._force:
            listing = "\n  ".join(changes)
            raise RunError(
                f"the config changed since the run in '{directory.path}' began:\n  {listing}",
                "resume with the old config, or use the new one with --force",
            )


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        callbacks: Sequence[Callback],
        endpoint: AgentEndpoint | None,
    ) -> None:
        self.config, self.directory, self.callbacks, self.endpoint = config, directory, callbacks, endpoint
        self.stopping = False

    async def go(self) -> TrainResult:
        """Run everything. The first Ctrl-C or SIGTERM stops after the current step, the second at once."""
        if threading.current_thread() is not threading.main_thread():
            return await self._go()
        loop = asyncio.get_running_loop()
        # A notebook's event loop outlives the run and has its own handlers.
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        try:
            return await self._go()
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    async def _go(self) -> TrainResult:
        async with AsyncExitStack() as stack:
            return await self._train(await connect_sampler(self.config.policy, stack))

    async def _train(self, sampler: PolicyEngine | None) -> TrainResult:
        config = self.config
        recorded = self._recorded_numerics()
        self.context = context = await compute(build, config, recorded, self.endpoint, sampler=sampler)
        if self.stopping:
            raise KeyboardInterrupt
        check_splits(context.tasks, _needed(config))
        check_trained_roles(context)
        check_warm_start(context)
        self.yaml = yaml.safe_dump(without_secrets(json.loads(config.model_dump_json())), sort_keys=False)
        state, saved = await compute(resume_state, self.directory, context.learner, config.trainer.max_steps)
        reference = load_reference(saved) if saved else {}
        if saved and not reference and config.algorithm.kl.reference == "start":
            raise RunError(
                f"the run in '{self.directory.path}' has no copy of its starting policy",
                "resume with algorithm.kl.reference=base",
            )
        self.info = RunInfo(context, self.directory)
        changed = saved is not None and bool(self.directory.config_changes(config.model_dump(mode="json")))
        wandb = config.trainer.wandb
        wandb_logs = [] if wandb is None else [WandbLog(wandb, self.directory.path, config.name)]
        self.directory.write("config.yaml", self.yaml)
        self.info.write("running")
        self.tensorboard = TensorBoard(self.directory / "tensorboard", state.step + 1 if saved else 0)
        self.loggers = [self.tensorboard, *wandb_logs]
        self.callbacks = (*self.loggers, *self.callbacks)
        status = "failed"
        self.publisher = PolicyPublisher(context, self.directory)
        self.source = self._open_source(state)
        try:
            for callback in self.callbacks:
                callback.on_start(self.info.at_start(state.step))
            await self.publisher.begin()
            with Store(self.directory / "store.sqlite") as self.store:
                self.held_out = HeldOut(context, self.directory, self.store, self.callbacks, lambda: self.stopping)
                if saved is None:
                    self.store.trajectories.discard_from(0)
                    await self.held_out.before()
                    await self._warm_start()
                    if not self.stopping:
                        await self.publisher.after_step(0)
                        reference = await compute(self._reference_weights, config.algorithm.kl.reference)
                        state = TrainState(0, 0, 0, context.decoder.version)
                        await self._save(state, reference)
                else:
                    keeps = config.rollout.resume_attempts and not changed
                    version = context.decoder.version if keeps else None
                    self.store.trajectories.discard_from(state.step + 1, newer_than=version)
                delete_unowned_actions(self.store)
                await self.held_out.after(state.step)
                self.reference = reference
                self.producer = BatchProducer(context, self.store, state, self.source)
                try:
                    state = await self._take_steps(state)
                finally:
                    await self.producer.close()
                if state.step and not self._folder(state).exists():
                    # Ctrl-C came during the step's evaluation, after the last save; or the source is exhausted.
                    await self._save(state, reference)
                complete = state.step == config.trainer.max_steps and self.held_out.complete
                status = "stopped" if self.stopping and not complete else "finished"
        finally:
            self.info.write("stopped" if status == "failed" and self.stopping else status)
            for logger in self.loggers:
                logger.close()
            if self.source is not None:
                self.source.close()
        final = [row for row in self.directory.rows("evals.jsonl") if row["label"] == "final"]
        for callback in self.callbacks:
            callback.on_finish({"status": status, "run_dir": str(self.directory.path)})
        return TrainResult(self.directory.path, status, state.step, final[-1] if final else None)

    def _recorded_numerics(self) -> Numerics | None:
        """Return the numerics of the run in this directory; None for a new run or after a change of precision
        settings."""
        if not self.directory.started:
            return None
        changes = self.directory.config_changes(self.config.model_dump(mode="json"))
        if any(change.startswith(NUMERICS_SETTINGS) for change in changes):
            return None
        return read_recorded(self.directory.path)

    def _open_source(self, state: TrainState) -> GroupSource | None:
        config = self.config.rollout.source
        if config is None:
            return None
        # A random name, because runs may move and another run may later use the same path.
        path = self.directory / "source_owner"
        if not path.is_file():
            self.directory.write("source_owner", f"{self.config.name}-{uuid.uuid4().hex}")
        source = GroupSource(config, path.read_text(encoding="utf-8"), lambda: self.stopping)
        source.rewind_to(state.step)
        return source

    def _end_early(self, exhausted: SourceExhausted, state: TrainState) -> None:
        """End the run normally when the source is exhausted, unless it never had a group."""
        if not self.stopping:
            if state.step == 0:
                raise exhausted
            _log.warning("%s", exhausted)
        self.stopping = True

    def stop(self) -> None:
        """As `Training.stop`."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True

    def _folder(self, state: TrainState) -> Path:
        return self.directory / "checkpoints" / f"step-{state.step:06d}"

    async def _save(self, state: TrainState, reference: dict[str, Tensor]) -> None:
        await compute(
            save_checkpoint,
            self._folder(state),
            self.context.learner,
            state,
            self.yaml,
            str(self.config.policy.model),
            reference,
        )
        await compute(self.publisher.publish_checkpoint, self._folder(state))
        prune(self.directory.path, self.config.trainer.keep_checkpoints)

    async def _warm_start(self) -> None:
        """Imitate trajectories when configured. An interrupted warm start begins again on resume."""
        config, context = self.config, self.context
        if not config.warm_start.examples or self.stopping:
            return
        imitated = await collect_lessons(context)
        learner = make_learner(context, len(imitated))
        for update, sequences in enumerate(lesson_batches(imitated, config.warm_start, config.trainer.seed), 1):
            began = time.perf_counter()
            metrics = await compute(learner.imitate, sequences)
            elapsed = time.perf_counter() - began
            self._log({"stage": "warm_start", "step": 0, "update": update, **metrics, "time_s": elapsed})
            if self.stopping:
                return

    def _reference_weights(self, kind: str) -> dict[str, Tensor]:
        return self.context.weights.snapshot() if kind == "start" else {}

    async def _take_steps(self, state: TrainState) -> TrainState:
        """Train until the last step, a stop, or the end of the source."""
        trainer = self.config.trainer
        while state.step < trainer.max_steps and not self.stopping:
            try:
                state = await self._step(state)
            except SourceExhausted as exhausted:
                self._end_early(exhausted, state)
                break
            if state.step % trainer.save_every == 0 or state.step == trainer.max_steps or self.stopping:
                await self._save(state, self.reference)
            await self.held_out.after(state.step)
        return state

    async def _step(self, state: TrainState) -> TrainState:
        try:
            began = time.perf_counter()
            sampled = await self.producer.next()
            result = await update_policy(self.context, sampled, state, self.reference, self._check_first_update)
            self.publisher.observe(
                [TokenSequence.of(s) for g in sampled.collected.groups for t in g for s in trainable_steps(t)]
            )
            if self.source is not None:
                await self.source.consume(sampled.collected.leased_keys, sampled.step)
        except TrainingError as error:
            raise type(error)(f"step {state.step + 1}: {error.message}", error.hint) from error
        published = await self.publisher.after_step(result.state.step)
        self._log({**result.row, **published.metrics, "time_s": time.perf_counter() - began})
        published.insist()
        return result.state

    def _check_first_update(
        self, groups: Sequence[Group], batch: LearningBatch, sums: Mapping[str, float], own: OwnLogProbs
    ) -> None:
        check_first_update(self.context, self.directory, groups, batch, sums, own)

    def _log(self, row: dict[str, Any]) -> None:
        self.directory.append("metrics.jsonl", row)
        for callback in self.callbacks:
            callback.on_metrics(row)


def _needed(config: TrainConfig) -> dict[str, int]:
    """Return how many tasks the run needs of each split; for `train` any number suffices."""
    trainer = config.trainer
    val = trainer.val_tasks if trainer.eval_every else 0
    needed = {"train": int(config.rollout.source is None), "val": val, "test": trainer.test_tasks}
    return {split: count for split, count in needed.items() if count}
