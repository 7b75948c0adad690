"""The canary: does a sampler with weights of its own answer from what was published last?

A server that keeps an old adapter (a cache, a failed load, another run under the same name) samples on as if nothing
had happened, and every step says that a newer policy did. So after each publication the sampler is asked for the next
token of the same prefixes, and reports the likeliest ones with their log-probabilities. With e those of the sampler,
and n and o the learner's for the same tokens under the new and the old weights, the share of the update that the
sampler shows is the slope b of

    e - o = b (n - o)

over all these tokens: 1 if it has the new weights, 0 if it has the old ones. The sampler is nearer to the new weights
(smaller sum of squares) exactly where b > 1/2. `slope` in `self_check/noise.py` gives the error of b, at that module's
false-alarm rate: from the scatter between prefixes, and from the sampler / learner mismatch, which was measured on the
same prefixes before the first update. Where b - error > 1/2 the update is `taken`, where b + error < 1/2 the sampler
is `stale`, and between them the update is too small to tell.

Small updates could hide a sampler that never follows. So if the last update is too small to tell, the sampler is also
compared with the newest weights that it is known to have taken: what has moved since then adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from midstream.core.sampling import SamplingParams
from midstream.engines.base import PolicyEngine, Request
from midstream.engines.replicas import Replicas
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.self_check.noise import slope, trimmed_rms

PREFIXES = 32
TOP = 20
"""Tokens that a sampler reports for each prefix; vLLM's default maximum."""
LONGEST = 512
"""Tokens kept of a longer prefix, from its end: asking must stay cheap beside a training step."""
HALF = 0.5
"""The share of an update at which the sampler is as near to the old weights as to the new ones."""


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


@dataclass(frozen=True, slots=True)
class Reported:
    """A sampler's likeliest next tokens and their log-probabilities, by prefix."""

    ids: Sequence[np.ndarray]
    log_probs: Sequence[np.ndarray]

    def of(self, learner: np.ndarray) -> list[np.ndarray]:
        """Return the learner's log-probabilities [prefixes, vocab] of the same tokens."""
        return [row[ids] for row, ids in zip(learner, self.ids, strict=True)]


def judge(sampler: Reported, new: np.ndarray, old: np.ndarray, noise: float) -> Finding:
    """Compare `sampler` with the learner's next-token log-probabilities [prefixes, vocab] under the `new` and the `old`
    weights. `noise` is the root mean square by which sampler and learner differ with equal weights."""
    before = sampler.of(old)
    moved = [n - o for n, o in zip(sampler.of(new), before, strict=True)]
    update = float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))
    if not update:
        return Finding(Verdict.UNDECIDABLE, 0.0, 1.0, 0.0)
    share, error = slope([e - o for e, o in zip(sampler.log_probs, before, strict=True)], moved, noise)
    decided = Verdict.TAKEN if share - error > HALF else Verdict.STALE if share + error < HALF else Verdict.UNDECIDABLE
    return Finding(decided, share, error, update)


def mismatch(sampler: Reported, learner: np.ndarray) -> float:
    """Return the noise for `judge`: how far sampler and learner differ with equal weights."""
    return trimmed_rms([e - n for e, n in zip(sampler.log_probs, sampler.of(learner), strict=True)])


class Canary:
    """Judges each publication on `prefixes` (token ids). `noise` is as for `judge`; `before` are the learner's
    next-token log-probabilities under the weights that the sampler is known to have."""

    def __init__(self, prefixes: Sequence[Sequence[int]], noise: float, before: np.ndarray) -> None:
        self.prefixes, self.noise = prefixes, noise
        self._last = self._known = before

    def judge(self, new: np.ndarray, samplers: Sequence[Reported]) -> list[Finding]:
        """Judge a publication by what each sampler reports after it; `new` is of the learner under its weights."""
        findings = [self._finding(sampler, new) for sampler in samplers]
        if findings and all(finding.verdict is Verdict.TAKEN for finding in findings):
            self._known = new
        self._last = new
        return findings

    def _finding(self, sampler: Reported, new: np.ndarray) -> Finding:
        last = judge(sampler, new, self._last, self.noise)
        if last.verdict is Verdict.UNDECIDABLE:
            since = judge(sampler, new, self._known, self.noise)
            if since.verdict is Verdict.STALE:
                return since
        return last


def choose_prefixes(sequences: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
    """Return up to `PREFIXES` different prefixes of `sequences`, each ending before a token of the response."""
    ends = [
        (*one.prompt_ids, *one.response_ids[: number % max(1, len(one.response_ids))])[-LONGEST:]
        for number, one in enumerate(sequences)
    ]
    different = list(dict.fromkeys(end for end in ends if end))
    count = min(PREFIXES, len(different))
    return [different[n * len(different) // count] for n in range(count)]


def samplers_of(engine: PolicyEngine) -> dict[str, PolicyEngine]:
    """Return the engines with weights of their own that have loaded the publication, by name. Each replica is judged,
    unless it was unreachable: it loads the weights before its next call, and is judged after the next publication."""
    if not isinstance(engine, Replicas):
        return {engine.name: engine}
    names = [one.name for one in engine.engines]
    return {
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})": one
        for place, (name, one, behind) in enumerate(zip(names, engine.engines, engine.behind, strict=True))
        if isinstance(one, PolicyEngine) and not behind
    }


async def ask(engine: PolicyEngine, prefixes: Sequence[Sequence[int]], adapter: str = "") -> Reported:
    """Return the likeliest next tokens by `engine` with `adapter`."""
    sampling = SamplingParams(max_tokens=1, temperature=1.0, seed=0)
    once = Request(prompt_ids=(), sampling=sampling, adapter=adapter, top_log_probs=TOP)
    answers = await asyncio.gather(
        *(engine.generate(replace(once, prompt_ids=tuple(p), session=f"canary-{n}")) for n, p in enumerate(prefixes))
    )
    for number in range(len(prefixes)):
        engine.leave(f"canary-{number}")
    tops = [answer.top_log_probs[0] for answer in answers]
    return Reported(
        [np.array([token for token, _ in top]) for top in tops],
        [np.array([log_prob for _, log_prob in top]) for top in tops],
    )
