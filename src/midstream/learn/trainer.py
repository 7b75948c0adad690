"""The training loop: step, log, evaluate, save; and go on from a checkpoint to the same numbers.

Everything drawn is derived from the seed and from counters in the checkpoint, so a resumed run repeats what a killed
one would have done. What was logged after the last checkpoint is dropped and made again."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import re
import resource
import signal
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from midstream import __version__
from midstream.agents.endpoint import AgentEndpoint
from midstream.core.blocking import run_blocking
from midstream.core.errors import RunError, TrainingError
from midstream.core.secrets import without_secrets
from midstream.engines.torch.compute import compute
from midstream.engines.torch.numerics import Numerics, read_recorded
from midstream.learn.batch import LearningBatch
from midstream.learn.callback import Callback
from midstream.learn.checkpoint import TrainState, checkpoints, load_checkpoint, load_reference, prune, save_checkpoint
from midstream.learn.checks import PLAINLY, first_batch, insist
from midstream.learn.collect import Group
from midstream.learn.config import TrainConfig
from midstream.learn.held_out import HeldOut
from midstream.learn.mismatch import OwnLogProbs
from midstream.learn.noise import noise_floor
from midstream.learn.run_dir import FULL, RunDirectory, full
from midstream.learn.setup import build, check_trained
from midstream.learn.source import Drained, GroupSource
from midstream.learn.splits import check_splits
from midstream.learn.step import take_step
from midstream.learn.tensorboard import TensorBoard
from midstream.learn.warm_start import check_demonstrations, demonstrate, lessons, make_learner
from midstream.record.store import Store

_log = logging.getLogger(__name__)
PRECISION = ("policy.numerics", "policy.dtype", "policy.device", "policy.model")
"""Settings that a run keeps its numerics under."""


STOPS = (signal.SIGINT, signal.SIGTERM)
"""What asks a run to save and stop: Ctrl-C, and whatever ends processes politely (systemd, Slurm, Kubernetes)."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended: `status` is `finished` or `stopped`; `final` is the last evaluation on test."""

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
    """Run `config` to its end, or until Ctrl-C or SIGTERM. `endpoint` accepts the calls of black-box agents. Raises
    `UserError` for anything the user can mend; what was saved stays."""
    training = Training(config, callbacks, resume=resume, force=force, endpoint=endpoint)
    return run_blocking(training.run(), interrupt=training.stop)


class Training:
    """A run that is about to begin or to go on. `run` it once."""

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
        directory = RunDirectory(_run_path(self._config, self._resume))
        try:
            self._check(directory)
            self._run = _Run(self._config, directory, self._callbacks, self._endpoint)
            return await self._run.go()
        except OSError as error:
            # The logs and checkpoints explain their own failures; this one came from somewhere else, as tensorboard.
            if error.errno not in FULL:
                raise
            raise full(directory.path, error) from None
        finally:
            directory.release()

    def stop(self) -> None:
        """Save and stop after the step under way; raises KeyboardInterrupt when called again, or before the start."""
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
                "resume with the old config, or take the new one with --force",
            )


def _run_path(config: TrainConfig, resume: bool) -> Path:
    if config.trainer.run_dir is not None:
        return Path(config.trainer.run_dir)
    root = Path("runs")
    own = re.compile(rf"{re.escape(config.name)}(-\d+)?")
    names = [path.name for path in root.iterdir() if own.fullmatch(path.name)] if root.is_dir() else []
    if resume:
        taken = [root / name for name in names if (root / name / "config.yaml").exists()]
        return max(taken, key=lambda path: path.stat().st_mtime, default=root / config.name)
    number = 1
    while (name := config.name if number == 1 else f"{config.name}-{number}") in names:
        number += 1
    return root / name


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
        self.tensorboard: TensorBoard | None = None

    async def go(self) -> TrainResult:
        """The whole run. The first Ctrl-C or SIGTERM ends it after the step under way, the second at once."""
        if threading.current_thread() is not threading.main_thread():
            return await self._go()
        loop = asyncio.get_running_loop()
        # A notebook's loop goes on after the run, and has handlers of its own.
        before = {number: signal.getsignal(number) for number in STOPS}
        for number in STOPS:
            loop.add_signal_handler(number, self.stop)
        try:
            return await self._go()
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    async def _go(self) -> TrainResult:
        config = self.config
        self.parts = parts = await compute(build, config, self._recorded_numerics(), self.endpoint)
        if self.stopping:
            raise KeyboardInterrupt
        check_splits(parts.tasks, _needed(config))
        check_trained(parts)
        check_demonstrations(parts)
        self.yaml = yaml.safe_dump(without_secrets(json.loads(config.model_dump_json())), sort_keys=False)
        state, saved = await compute(self._resume_state)
        reference = load_reference(saved) if saved else {}
        if saved and not reference and config.algorithm.kl.reference == "start":
            raise RunError(
                f"the run in '{self.directory.path}' kept no copy of the policy it started from",
                "resume with algorithm.kl.reference=base",
            )
        self._begin(state, resumed=saved is not None)
        status = "failed"
        self.source = self._open_source(state)
        try:
            with Store(self.directory / "store.sqlite") as self.store:
                self.held_out = HeldOut(parts, self.directory, self.store, self.callbacks, lambda: self.stopping)
                if saved is None:
                    self.store.trajectories.discard_from(0)
                    await self.held_out.before()
                    await self._warm_start()
                    if not self.stopping:
                        reference = await compute(self._start_of, config.algorithm.kl.reference)
                        state = TrainState(0, 0, 0, parts.decoder.version)
                        await self._save(state, reference)
                else:
                    self.store.trajectories.discard_from(state.step + 1)
                await self.held_out.after(state.step)
                self.reference = reference
                while state.step < config.trainer.max_steps and not self.stopping:
                    try:
                        state = await self._step(state)
                    except Drained as drained:
                        self._end_early(drained, state)
                        break
                    if (
                        state.step % config.trainer.save_every == 0
                        or state.step == config.trainer.max_steps
                        or self.stopping
                    ):
                        await self._save(state, reference)
                    await self.held_out.after(state.step)
                if state.step and not self._folder(state).exists():
                    # Ctrl-C came while the step's evaluation ran, after the time to save; or a source ran dry.
                    await self._save(state, reference)
                complete = state.step == config.trainer.max_steps and self.held_out.complete
                status = "stopped" if self.stopping and not complete else "finished"
        finally:
            self._write_info("stopped" if status == "failed" and self.stopping else status)
            if self.tensorboard is not None:
                self.tensorboard.close()
            if self.source is not None:
                self.source.close()
        final = [row for row in self.directory.rows("evals.jsonl") if row["label"] == "final"]
        for callback in self.callbacks:
            callback.on_finish({"status": status, "run_dir": str(self.directory.path)})
        return TrainResult(self.directory.path, status, state.step, final[-1] if final else None)

    def _recorded_numerics(self) -> Numerics | None:
        """How the run in the directory was computed when it began; None where there is none, or it is to be otherwise
        now."""
        if not self.directory.started:
            return None
        changes = self.directory.config_changes(self.config.model_dump(mode="json"))
        return None if any(change.startswith(PRECISION) for change in changes) else read_recorded(self.directory.path)

    def _open_source(self, state: TrainState) -> GroupSource | None:
        config = self.config.rollout.source
        if config is None:
            return None
        # Not the path: another run may once be at the same place, and this one moved.
        path = self.directory / "source_owner"
        if not path.is_file():
            self.directory.write("source_owner", f"{self.config.name}-{uuid.uuid4().hex}")
        source = GroupSource(config, path.read_text(encoding="utf-8"), lambda: self.stopping)
        source.back_to(state.step)
        return source

    def _end_early(self, drained: Drained, state: TrainState) -> None:
        """A source that has run dry ends the run well, unless it never had anything."""
        if not self.stopping:
            if state.step == 0:
                raise drained
            _log.warning("%s", drained)
        self.stopping = True

    def stop(self) -> None:
        """As `Training.stop`."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True

    def _resume_state(self) -> tuple[TrainState, Path | None]:
        """The state to go on from; logs are cut back to it."""
        found = checkpoints(self.directory.path)
        state = TrainState(0, 0, 0, 0)
        if found:
            state = load_checkpoint(found[-1], self.parts.learner)
            self.directory.keep("metrics.jsonl", lambda row: row["step"] <= state.step)
            # A finished run that is to go on has a final evaluation that is none any more.
            last = self.config.trainer.max_steps
            self.directory.keep(
                "evals.jsonl",
                lambda row: row["step"] <= state.step and (row["label"] != "final" or row["step"] == last),
            )
            # Samples of an evaluation are written before its row: without the row they will be written again.
            evaluated = {row["label"] for row in self.directory.rows("evals.jsonl")}
            self.directory.keep("samples.jsonl", lambda row: row["label"] in evaluated)
            return state, found[-1]
        for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl"):
            self.directory.keep(name, lambda row: False)
        return state, None

    def _begin(self, state: TrainState, resumed: bool) -> None:
        if not self.directory.started:
            self.created = datetime.now(UTC).isoformat(timespec="seconds")
        else:
            info = self.directory / "run.json"
            self.created = (
                json.loads(info.read_text())["created"]
                if info.exists()
                else datetime.now(UTC).isoformat(timespec="seconds")
            )
        self.directory.write("config.yaml", self.yaml)
        self._write_info("running")
        self.tensorboard = TensorBoard(self.directory / "tensorboard", state.step + 1 if resumed else 0)
        self.callbacks = (self.tensorboard, *self.callbacks)
        info = {
            "name": self.config.name,
            "model": self.config.policy.model,
            "seed": self.config.trainer.seed,
            "max_steps": self.config.trainer.max_steps,
            "step": state.step,
            "run_dir": str(self.directory.path),
            "numerics": self.parts.numerics.summary(),
        }
        for callback in self.callbacks:
            callback.on_start(info)

    def _write_info(self, status: str) -> None:
        self.directory.write_json(
            "run.json",
            {
                "name": self.config.name,
                "created": self.created,
                "status": status,
                "model": self.config.policy.model,
                "seed": self.config.trainer.seed,
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "numerics": self.parts.numerics.as_json(),
                "versions": {
                    "midstream": __version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "dtype": str(self.parts.decoder.dtype).removeprefix("torch."),
                    "device": str(self.parts.decoder.device),
                    "threads": torch.get_num_threads(),
                },
            },
        )

    def _folder(self, state: TrainState) -> Path:
        return self.directory / "checkpoints" / f"step-{state.step:06d}"

    async def _save(self, state: TrainState, reference: dict[str, torch.Tensor]) -> None:
        await compute(
            save_checkpoint,
            self._folder(state),
            self.parts.learner,
            state,
            self.yaml,
            str(self.config.policy.model),
            reference,
        )
        prune(self.directory.path, self.config.trainer.keep_checkpoints)

    async def _warm_start(self) -> None:
        """Imitate demonstrations, when the config asks for them. Left by a Ctrl-C, it begins anew on resume."""
        config, parts = self.config, self.parts
        if not config.warm_start.examples or self.stopping:
            return
        demonstrations = await demonstrate(parts)
        learner = make_learner(parts)
        for update, sequences in enumerate(lessons(demonstrations, config.warm_start, config.trainer.seed), 1):
            began = time.perf_counter()
            metrics = await compute(learner.imitate, sequences)
            elapsed = time.perf_counter() - began
            self._log({"stage": "warm_start", "step": 0, "update": update, **metrics, "time_s": elapsed})
            if self.stopping:
                return

    def _start_of(self, kind: str) -> dict[str, torch.Tensor]:
        return self.parts.weights.snapshot() if kind == "start" else {}

    async def _step(self, state: TrainState) -> TrainState:
        try:
            done = await take_step(self.parts, self.store, state, self.reference, self._check, self.source)
        except TrainingError as error:
            raise type(error)(f"step {state.step + 1}: {error.message}", error.hint) from error
        self._log(done.row)
        return done.state

    def _check(
        self, groups: Sequence[Group], batch: LearningBatch, sums: Mapping[str, float], own: OwnLogProbs
    ) -> None:
        reference = self.config.algorithm.kl.reference
        fresh = reference == "start" or (reference == "base" and not self.config.warm_start.examples)
        kl = sums["kl"] / (sums.get("weight") or 1.0) if "kl" in sums and fresh else None
        checks = first_batch(
            self.config,
            groups,
            batch,
            own=own,
            noise=noise_floor(self.parts.decoder, [turn.sequence for turn in batch.turns]),
            version=self.parts.decoder.version - 1,  # the update has been made
            kl_at_start=kl,
        )
        self.directory.write_json("checks.json", [asdict(check) for check in checks])
        insist(checks)
        for check in checks:
            if not check.decided:
                _log.warning("self-check '%s' cannot decide at this machine's noise: %s", check.name, check.meaning)
            if check.name == PLAINLY and check.value:
                _log.warning("%.0f %% of tokens: %s", 100 * check.value, check.meaning)

    def _log(self, row: dict[str, Any]) -> None:
        self.directory.append("metrics.jsonl", row)
        for callback in self.callbacks:
            callback.on_metrics(row)


def _needed(config: TrainConfig) -> dict[str, int]:
    """How many tasks the run asks of each split; for `train` any number will do."""
    trainer = config.trainer
    val = trainer.val_tasks if trainer.eval_every else 0
    needed = {"train": int(config.rollout.source is None), "val": val, "test": trainer.test_tasks}
    return {split: count for split, count in needed.items() if count}
