"""Publishes the policy of a run: to the sampler, if that has weights of its own, and to followers in other processes.

A sampler in this process reads the learner's own weights: there is nothing to hand over, so only followers get
publications, at checkpoints and every `trainer.publish_every` steps, and there is no canary. (That updates reach such a
sampler is visible in every step's mismatch, and proven by `midstream doctor --training`.) A separate sampler gets every
new version before it samples again, and the canary checks that it took it, see `canary.py`.

Each of several adapters is published under its name, all of them with the same versions: an adapter that an update did
not move is published again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from midstream.core.errors import EngineError, RunError, TrainingError, Unsupported
from midstream.engines.publication import FOLDER, Publication, Publisher
from midstream.engines.torch.compute import compute
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.model.weights import saved_folders
from midstream.learn.run.canary import Finding, Verdict
from midstream.learn.run.canary_watch import CanaryWatch
from midstream.learn.run.checkpoint import is_disk_error, link_weights
from midstream.learn.run.run_dir import RunDirectory
from midstream.learn.run.setup import TrainingContext

_log = logging.getLogger(__name__)
CANARY = "canary.json"
"""File of the run directory with the canary's prefixes and noise; `canary-NAME.json` for each of several adapters."""


@dataclass(frozen=True, slots=True)
class Published:
    """Outcome of a publication: `metrics` for the log, and the samplers that did not take it, with what was found."""

    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    stale: Mapping[str, Finding] = field(default_factory=dict[str, Finding])
    version: int = 0

    def insist(self) -> None:
        """Raise `TrainingError` if a sampler did not take the update."""
        for name, found in self.stale.items():
            raise TrainingError(
                f"the sampler did not take the update: after publication of policy version {self.version}, {name} is "
                f"nearer to the weights before it (it shows {found.share:.2f} +- {found.error:.2f} of an update of "
                f"{found.update:.2g} nats)",
                "does another run use the same server under the same policy.adapter? Restart the server, then continue "
                "with --resume",
            )


class PolicyPublisher:
    """Publishes the versions of one run's policy below `directory`."""

    def __init__(self, context: TrainingContext, directory: RunDirectory) -> None:
        self._learner, self._engine, self._remote = context.learner, context.engine, not context.shares_weights
        self._every, self._base = context.config.trainer.publish_every, str(context.config.policy.model)
        self._names, self._directory = context.adapters.names, directory
        self._publishers = {name: Publisher(directory / FOLDER, name) for name in self._names}
        self._version: int | None = None
        """The version published last by this process."""
        self._watches = {name: self._watch(name) for name in self._names} if self._remote else {}
        self._weights_before: dict[str, Tensor] = {}
        """The weights published last, until all canaries are calibrated."""

    def _watch(self, name: str) -> CanaryWatch:
        several = len(self._names) > 1
        file, described = (f"canary-{name}.json", f" of {name}") if several else (CANARY, "")
        return CanaryWatch(self._learner, self._engine, self._directory, name, file, described)

    async def begin(self) -> None:
        """Publish the weights that the run begins or resumes with, where somebody needs them now."""
        for publisher in self._publishers.values():
            publisher.discard_after(self._learner.decoder.version)
        if not self._remote:
            newest = [publisher.newest() for publisher in self._publishers.values()]
            versions = {None if one is None else one.version for one in newest}
            self._version = versions.pop() if len(versions) == 1 else None
            return
        for watch in self._watches.values():
            restored = await compute(watch.restore)
            if not restored and self._learner.updates:
                _log.warning(
                    "'%s' has no canary: whether the sampler takes updates is not checked until the next batch",
                    self._directory.path,
                )
        (await self.publish()).insist()

    def observe(self, sequences: Sequence[TokenSequence]) -> None:
        """Take the prefixes of canaries from the first batches that the run learns from."""
        for name, watch in self._watches.items():
            several = len(self._names) > 1
            watch.observe([one for one in sequences if not several or one.adapter == name])

    async def after_step(self, step: int) -> Published:
        """Publish the weights after a training step, if that is due."""
        if self._remote or (self._every is not None and step % self._every == 0):
            return await self.publish()
        return Published()

    def publish_checkpoint(self, checkpoint: Path) -> None:
        """Publish the weights of a checkpoint of the current version, without writing them twice."""
        version = self._learner.decoder.version
        if self._version != version:
            for name, folder in saved_folders(checkpoint, self._names).items():
                self._write(name, version, partial(link_weights, folder))
            self._version = version

    async def publish(self) -> Published:
        """Publish the current weights. A separate sampler loads them, and is judged."""
        version = self._learner.decoder.version
        if self._version == version:
            return Published()
        began = time.perf_counter()
        publications: list[Publication] = []
        for name in self._names:
            write = partial(self._learner.weights.save_adapter, base=self._base, name=name)
            publications.append(await compute(self._write, name, version, write))
        self._version = version
        if not self._remote:
            return Published({"publish_s": time.perf_counter() - began})
        for watch in self._watches.values():
            await watch.calibrate(self._weights_before)
        for publication in publications:
            await self._load(publication)
        findings = await self._judge(version)
        calibrated = all(watch.ready for watch in self._watches.values())
        self._weights_before = {} if calibrated else self._learner.weights.snapshot()
        stale = {name: found for name, found in findings.items() if found.verdict is Verdict.STALE}
        metrics = {"publish_s": time.perf_counter() - began, **_metrics(list(findings.values()))}
        return Published(metrics, stale, version)

    async def _load(self, publication: Publication) -> None:
        try:
            await self._engine.load_weights(publication)
        except (EngineError, Unsupported) as error:
            raise RunError(
                f"the sampler could not load policy version {publication.version}: {error}",
                f"see that the server runs and can read '{publication.folder}', then continue with --resume",
            ) from None

    async def _judge(self, version: int) -> dict[str, Finding]:
        """Judge each sampler with each adapter."""
        findings: dict[str, Finding] = {}
        for name, watch in self._watches.items():
            which = f" with the adapter '{name}'" if len(self._names) > 1 else ""
            found = await watch.judge(version)
            findings |= {f"{sampler}{which}": finding for sampler, finding in found.items()}
        return findings

    def _write(self, name: str, version: int, write: Callable[[Path], None]) -> Publication:
        publisher = self._publishers[name]
        try:
            return publisher.publish(version, write)
        except Exception as error:
            if not is_disk_error(error):
                raise
            raise RunError(
                f"cannot publish policy version {version} to '{publisher.root}': {error}",
                "free some disk space, then continue with --resume",
            ) from None


def _metrics(findings: Sequence[Finding]) -> dict[str, float]:
    """Metrics of the sampler, and the adapter that moved, that show least of the update."""
    moved = [finding for finding in findings if finding.update] or findings
    if not moved:
        return {}
    worst = min(moved, key=lambda finding: finding.share)
    return {
        "canary/share": worst.share,
        "canary/error": worst.error,
        "canary/update": worst.update,
        "canary/decided": float(all(finding.verdict is not Verdict.UNDECIDABLE for finding in moved)),
    }
