"""Publishes the policy of a run: to the sampler, if that has weights of its own, and to followers in other processes.

A sampler in this process reads the learner's own weights: there is nothing to hand over, so only followers get
publications, at checkpoints and every `trainer.publish_every` steps, and there is no canary. (That updates reach such a
sampler is visible in every step's mismatch, and proven by `midstream doctor --training`.) A separate sampler gets every
new version before it samples again, and the canary checks that it took it, see `canary.py`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from midstream.core.errors import EngineError, RunError, TrainingError, Unsupported
from midstream.engines.publication import FOLDER, Publication, Publisher
from midstream.engines.torch.compute import compute
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.canary import Canary, Finding, Reported, Verdict, ask, choose_prefixes, mismatch, samplers_of
from midstream.learn.run.checkpoint import is_disk_error, link_weights
from midstream.learn.run.run_dir import RunDirectory
from midstream.learn.run.setup import TrainingContext

_log = logging.getLogger(__name__)
CANARY = "canary.json"
"""File of the run directory with the canary's prefixes and noise, so that a resumed run judges by the same."""


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
        policy = context.config.policy
        self._learner, self._engine, self._remote = context.learner, context.engine, not context.shares_weights
        self._every, self._base, self._directory = context.config.trainer.publish_every, str(policy.model), directory
        self._publisher = Publisher(directory / FOLDER, policy.adapter)
        self._version: int | None = None
        """The version published last by this process."""
        self._canary: Canary | None = None
        self._prefixes: list[tuple[int, ...]] = []
        """The canary's, from when a batch is known until the canary can be calibrated with them."""
        self._weights_before: dict[str, Tensor] = {}
        """The weights published last, until there is a canary."""
        self._undecided = 0

    async def begin(self) -> None:
        """Publish the weights that the run begins or resumes with, where somebody needs them now."""
        self._publisher.discard_after(self._learner.decoder.version)
        newest = self._publisher.newest()
        if not self._remote:
            self._version = None if newest is None else newest.version
            return
        await self._read_canary()
        (await self.publish()).insist()

    def observe(self, sequences: Sequence[TokenSequence]) -> None:
        """Take the canary's prefixes from the first batch that the run learns from."""
        if self._remote and self._canary is None:
            self._prefixes = choose_prefixes(sequences)

    async def after_step(self, step: int) -> Published:
        """Publish the weights after a training step, if that is due."""
        if self._remote or (self._every is not None and step % self._every == 0):
            return await self.publish()
        return Published()

    def publish_checkpoint(self, checkpoint: Path) -> None:
        """Publish the weights of a checkpoint of the current version, without writing them twice."""
        version = self._learner.decoder.version
        if self._version != version:
            self._write(version, partial(link_weights, checkpoint))

    async def publish(self) -> Published:
        """Publish the current weights. A separate sampler loads them, and is judged."""
        version = self._learner.decoder.version
        if self._version == version:
            return Published()
        began = time.perf_counter()
        write = partial(self._learner.weights.save, base=self._base)
        publication = await compute(self._write, version, write)
        if not self._remote:
            return Published({"publish_s": time.perf_counter() - began})
        if self._canary is None and self._prefixes:
            await self._calibrate()
        try:
            await self._engine.load_weights(publication)
        except (EngineError, Unsupported) as error:
            raise RunError(
                f"the sampler could not load policy version {version}: {error}",
                f"see that the server runs and can read '{publication.folder}', then continue with --resume",
            ) from None
        findings = await self._judge()
        if self._canary is None:
            self._weights_before = self._learner.weights.snapshot()
        stale = {name: found for name, found in findings.items() if found.verdict is Verdict.STALE}
        metrics = {"publish_s": time.perf_counter() - began, **_metrics(list(findings.values()))}
        return Published(metrics, stale, version)

    def _write(self, version: int, write: Callable[[Path], None]) -> Publication:
        try:
            publication = self._publisher.publish(version, write)
        except Exception as error:
            if not is_disk_error(error):
                raise
            raise RunError(
                f"cannot publish policy version {version} to '{self._publisher.root}': {error}",
                "free some disk space, then continue with --resume",
            ) from None
        self._version = version
        return publication

    async def _calibrate(self) -> None:
        """Make the canary. The sampler still has the weights published last: where it differs from the learner under
        those is the mismatch that the canary must allow for."""
        prefixes = self._prefixes
        before = await compute(self._by_learner, prefixes, self._weights_before)
        mismatches = [mismatch(reported, before) for reported in (await self._by_samplers(prefixes)).values()]
        if not mismatches:
            return
        noise = max(mismatches)
        self._directory.write(CANARY, json.dumps({"noise": noise, "prefixes": prefixes}) + "\n")
        self._canary, self._weights_before = Canary(prefixes, noise, before), {}

    async def _read_canary(self) -> None:
        """Restore the canary of a resumed run. Which weights the sampler has now is not known, unless it was started
        anew: those to tell the checkpoint's from are the base model's."""
        path = self._directory / CANARY
        if not path.is_file():
            if self._learner.updates:
                _log.warning("there is no '%s': whether the sampler takes updates is not checked", path)
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        base = await compute(self._learner.next_token_log_probs, saved["prefixes"], adapter=False)
        self._canary = Canary(saved["prefixes"], saved["noise"], base.numpy())

    async def _judge(self) -> dict[str, Finding]:
        """Judge each sampler that has loaded the publication and answers, by its name."""
        canary = self._canary
        if canary is None:
            return {}
        reported = await self._by_samplers(canary.prefixes)
        new = await compute(self._by_learner, canary.prefixes)
        findings = canary.judge(new, list(reported.values()))
        self._report(findings, canary.noise)
        return dict(zip(reported, findings, strict=True))

    def _report(self, findings: Sequence[Finding], noise: float) -> None:
        """Log the first of consecutive publications that the canary cannot decide on."""
        # Weights that did not move at all, as in a critic's warm-up, are no news.
        open_ones = [found for found in findings if found.verdict is Verdict.UNDECIDABLE and found.update]
        self._undecided = self._undecided + 1 if open_ones else 0
        if self._undecided == 1:
            _log.warning(
                "canary undecidable at policy version %s: the update moves log-probabilities by %.2g nats, and "
                "sampler and learner differ by %.2g with equal weights",
                self._version,
                max(finding.update for finding in open_ones),
                noise,
            )

    async def _by_samplers(self, prefixes: Sequence[Sequence[int]]) -> dict[str, Reported]:
        """Return the answers of each sampler that has loaded the weights published last and can be reached."""
        found: dict[str, Reported] = {}
        for name, sampler in samplers_of(self._engine).items():
            try:
                found[name] = await ask(sampler, prefixes)
            except EngineError as error:
                _log.warning("the canary cannot ask %s: %s", name, error)
        return found

    def _by_learner(self, prefixes: Sequence[Sequence[int]], weights: Mapping[str, Tensor] | None = None) -> np.ndarray:
        """Return the learner's next-token log-probabilities under its weights, or under `weights`."""
        with nullcontext() if weights is None else self._learner.weights.swapped(weights):
            return self._learner.next_token_log_probs(prefixes).numpy()


def _metrics(findings: Sequence[Finding]) -> dict[str, float]:
    """Metrics of the sampler that shows least of the update."""
    if not findings:
        return {}
    worst = min(findings, key=lambda finding: finding.share)
    return {
        "canary/share": worst.share,
        "canary/error": worst.error,
        "canary/update": worst.update,
        "canary/decided": float(all(finding.verdict is not Verdict.UNDECIDABLE for finding in findings)),
    }
