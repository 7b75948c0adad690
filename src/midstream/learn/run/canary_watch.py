"""Watches with a canary whether the samplers take what a run publishes of one adapter; see `canary.py`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from torch import Tensor

from midstream.core.errors import EngineError
from midstream.engines.base import PolicyEngine
from midstream.engines.torch.compute import compute
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.canary import Canary, Finding, Reported, Verdict, ask, choose_prefixes, mismatch, samplers_of
from midstream.learn.run.run_dir import RunDirectory

_log = logging.getLogger(__name__)


class CanaryWatch:
    """Judges the publications of `adapter`. Its prefixes and noise are kept in `file` of the run directory, so that a
    resumed run judges by the same. `described` follows "the canary" in log messages."""

    def __init__(
        self, learner: Learner, engine: PolicyEngine, directory: RunDirectory, adapter: str, file: str, described: str
    ) -> None:
        self._learner, self._engine, self._directory = learner, engine, directory
        self._adapter, self._file, self._described = adapter, file, described
        self._canary: Canary | None = None
        self._prefixes: list[tuple[int, ...]] = []
        """The canary's, from when a batch is known until it can be calibrated with them."""
        self._undecided = 0

    @property
    def ready(self) -> bool:
        """Whether there is a canary: from then on the weights before a publication are not needed."""
        return self._canary is not None

    def observe(self, sequences: Sequence[TokenSequence]) -> None:
        """Take the prefixes from the first sequences that this adapter sampled."""
        if self._canary is None and not self._prefixes:
            self._prefixes = choose_prefixes(sequences)

    def restore(self) -> bool:
        """Restore the canary of a resumed run; False if it had none. Which weights the sampler has now is not known,
        unless it was started anew: those to tell the checkpoint's from are the base model's."""
        path: Path = self._directory / self._file
        if not path.is_file():
            return False
        saved = json.loads(path.read_text(encoding="utf-8"))
        base = self._learner.next_token_log_probs(saved["prefixes"], adapter=None)
        self._canary = Canary(saved["prefixes"], saved["noise"], base.numpy())
        return True

    async def calibrate(self, published: Mapping[str, Tensor]) -> None:
        """Make the canary, once there are prefixes. The sampler still has `published`, the weights published last:
        where it differs from the learner under those is the mismatch that the canary must allow for."""
        prefixes = self._prefixes
        if self._canary is not None or not prefixes:
            return
        before = await compute(self._by_learner, prefixes, published)
        mismatches = [mismatch(reported, before) for reported in (await self._by_samplers(prefixes)).values()]
        if not mismatches:
            return
        noise = max(mismatches)
        self._directory.write(self._file, json.dumps({"noise": noise, "prefixes": prefixes}) + "\n")
        self._canary = Canary(prefixes, noise, before)

    async def judge(self, version: int) -> dict[str, Finding]:
        """Judge each sampler that has loaded policy `version` and answers, by its name."""
        canary = self._canary
        if canary is None:
            return {}
        reported = await self._by_samplers(canary.prefixes)
        new = await compute(self._by_learner, canary.prefixes)
        findings = canary.judge(new, list(reported.values()))
        self._report(findings, canary.noise, version)
        return dict(zip(reported, findings, strict=True))

    def _report(self, findings: Sequence[Finding], noise: float, version: int) -> None:
        """Log the first of consecutive publications that the canary cannot decide on."""
        # Weights that did not move at all, as in a critic's warm-up, are no news.
        open_ones = [found for found in findings if found.verdict is Verdict.UNDECIDABLE and found.update]
        self._undecided = self._undecided + 1 if open_ones else 0
        if self._undecided == 1:
            _log.warning(
                "canary%s undecidable at policy version %s: the update moves log-probabilities by %.2g nats, and "
                "sampler and learner differ by %.2g with equal weights",
                self._described,
                version,
                max(finding.update for finding in open_ones),
                noise,
            )

    async def _by_samplers(self, prefixes: Sequence[Sequence[int]]) -> dict[str, Reported]:
        """Return the answers of each sampler that has loaded the weights published last and can be reached."""
        found: dict[str, Reported] = {}
        for name, sampler in samplers_of(self._engine).items():
            try:
                found[name] = await ask(sampler, prefixes, self._adapter)
            except EngineError as error:
                _log.warning("the canary cannot ask %s: %s", name, error)
        return found

    def _by_learner(self, prefixes: Sequence[Sequence[int]], weights: Mapping[str, Tensor] | None = None) -> np.ndarray:
        """Return the learner's next-token log-probabilities under its weights, or under `weights`."""
        with nullcontext() if weights is None else self._learner.weights.swapped(weights):
            return self._learner.next_token_log_probs(prefixes, adapter=self._adapter).numpy()
