"""The canary: does a sampler with weights of its own answer from what was published last?

A server that keeps an old adapter (a cache, a failed load, another run under the same name) samples on as if nothing
had happened, and every step says that a newer policy did. So after each publication the learner and the sampler score
the same fixed sequences. With n and o the log-probabilities of a token by the learner under the new and the old
weights, and e by the sampler, the share of the update that the sampler shows is the slope b of

    e - o = b (n - o)

over all tokens: 1 if it has the new weights, 0 if it has the old ones. The sampler is nearer to the new weights
(smaller sum of squares) exactly where b > 1/2. `slope` in `self_check/noise.py` gives the error of b, at that module's
false-alarm rate: from the scatter between sequences, and from the sampler / learner mismatch, which was measured on the
same sequences before the first update. Where b - error > 1/2 the update is `taken`, where b + error < 1/2 the sampler
is `stale`, and between them the update is too small to tell.

Small updates could hide a sampler that never follows. So where the last update cannot be told, the sampler is also
compared with the newest weights that it is known to have taken: what has moved since then adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from midstream.engines.base import PolicyEngine
from midstream.engines.replicas import Replicas
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.self_check.noise import slope, trimmed_rms

SEQUENCES = 16
TOKENS = 96
"""Tokens kept of a sequence, from its end: scoring must stay cheap beside a training step."""
HALF = 0.5
"""The share of an update at which the sampler is as near to the old weights as to the new ones."""
ByToken = Sequence[np.ndarray]
"""Log-probabilities of the tokens of each sequence."""


class Verdict(StrEnum):
    TAKEN = "taken"
    STALE = "stale"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the canary says of one publication: `share` is b, `error` its error, `update` the root mean square of n - o
    in nats."""

    verdict: Verdict
    share: float
    error: float
    update: float


def judge(sampler: ByToken, new: ByToken, old: ByToken, noise: float) -> Finding:
    """Compare the log-probabilities of `sampler` with those of the learner under the `new` and the `old` weights.
    `noise` is the root mean square by which sampler and learner differ with equal weights."""
    moved = [n - o for n, o in zip(new, old, strict=True)]
    update = float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))
    if not update:
        return Finding(Verdict.UNDECIDABLE, 0.0, 1.0, 0.0)
    share, error = slope([e - o for e, o in zip(sampler, old, strict=True)], moved, noise)
    decided = Verdict.TAKEN if share - error > HALF else Verdict.STALE if share + error < HALF else Verdict.UNDECIDABLE
    return Finding(decided, share, error, update)


@dataclass(slots=True)
class Canary:
    """Judges each publication on `sequences` (token ids). `noise` is as for `judge`; `previous` are the learner's
    log-probabilities under the weights published last, `known` under the newest ones that the sampler has certainly
    taken."""

    sequences: tuple[tuple[int, ...], ...]
    noise: float
    previous: ByToken
    known: ByToken = field(default=())

    def __post_init__(self) -> None:
        self.known = self.known or self.previous

    def judge(self, new: ByToken, samplers: Sequence[ByToken]) -> list[Finding]:
        """Judge a publication whose weights give `new` with the learner, from the log-probabilities of each sampler."""
        findings = [self._finding(sampler, new) for sampler in samplers]
        if findings and all(finding.verdict is Verdict.TAKEN for finding in findings):
            self.known = new
        self.previous = new
        return findings

    def _finding(self, sampler: ByToken, new: ByToken) -> Finding:
        last = judge(sampler, new, self.previous, self.noise)
        if last.verdict is Verdict.UNDECIDABLE:
            since = judge(sampler, new, self.known, self.noise)
            if since.verdict is Verdict.STALE:
                return since
        return last


def mismatch_on(sampler: ByToken, learner: ByToken) -> float:
    """Return the noise for `judge`: how far sampler and learner differ with equal weights."""
    return trimmed_rms([e - n for e, n in zip(sampler, learner, strict=True)])


def choose(sequences: Sequence[TokenSequence]) -> tuple[tuple[int, ...], ...]:
    """Return the ends of up to `SEQUENCES` different sequences of a batch, spread evenly."""
    ends = [(*one.prompt_ids, *one.response_ids)[-TOKENS:] for one in sequences]
    different = list(dict.fromkeys(end for end in ends if len(end) > 1))
    count = min(SEQUENCES, len(different))
    return tuple(different[n * len(different) // count] for n in range(count))


def samplers_of(engine: PolicyEngine) -> list[PolicyEngine]:
    """Return the engines that have weights of their own: each replica is judged."""
    return (
        [one for one in engine.engines if isinstance(one, PolicyEngine)] if isinstance(engine, Replicas) else [engine]
    )


async def scores(engine: PolicyEngine, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return the log-probabilities of all tokens but each sequence's first, by `engine`."""
    found = await asyncio.gather(*(engine.score(ids) for ids in sequences))
    return [np.array(values) for values in found]
