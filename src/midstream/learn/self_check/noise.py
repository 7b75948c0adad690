"""The noise floor: how far apart two correct computations of the same log-probabilities are on this machine.

On some processors and GPUs a row of a matrix product depends on how many rows are computed beside it, so sampler and
learner differ by rounding although both are right. A self-check must not take that for a fault, and must not hide a
fault behind it. So the noise is measured: some sequences are scored alone, and again with further tokens appended, in
two different numbers. In a causal model these cannot change what comes before them; they only change the number of
rows. Nothing else of the training path takes part, so a fault in it does not raise the floor.

**The test.** Two sizes of the differences over tokens are judged, each against its own floor: S, their root mean
square without the largest 1 % (at least one), so that a single token never decides, and the typical difference, 1.48
times the median of |d| (of the floor, where d is not 0), which the few tokens that noise moves most do not touch. A
check compares its size, over n sequences, with

    limit = max(ROUNDING, CUTS * floor * exp(Z * s))

where s is the standard deviation of the logarithm of their ratio. For S it is spread * sqrt(max(1, n_floor / n)): with
a_i and b_i the mean squares of sequence i in the two measurements of the floor and R = sum b / sum a, `spread` is
sqrt(sum (b_i - R a_i)^2) / (2 sum b), the ratio estimator's, which takes the tokens of one sequence for wholly
dependent; at least sqrt(2 / n_floor) / 2, that of independent normal differences. For the typical difference it is
t * sqrt(1 + n_floor / n) with t of the floor, by a bootstrap over sequences. `CUTS` allows the compared cuts to be
twice as noisy as the measured ones. With Z = 4.42 the probability of a false alarm is 5e-6 a size (one-sided, where the
logarithm is normal), about 1e-4 for all checks of a run together; `docs/training.md` has what was counted.

`slope` tests are far more sensitive: where a fault changes log-probabilities by a known pattern (another temperature,
shifted positions), noise hardly has any part of that pattern. Their limit is a fixed margin plus the quantile of the
same probability times the standard error.

`ROUNDING` is what is taken for rounding without being measured: engines whose kernels differ (another vendor's, vLLM)
may differ by that much although the learner's own passes do not differ at all. Where numerics are exact the floor is
0, and it is the limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.policy_model import PolicyModel

ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}
"""Smallest limit on S by the policy's dtype, in nats."""
CUTS = 2.0
"""How much noisier than the measured cuts the compared ones may be."""
Z = 4.42
"""Normal quantile of the false-alarm rate of one check, 5e-6."""
TRIMMED = 0.01
"""Share of tokens, those of the largest differences, that S leaves out."""
NORMAL = 1.4826
"""The standard deviation of a normal variable over the median of its absolute value."""
BOOTSTRAPS = 200
UNDECIDABLE = 0.4
"""A limit above this (nats) hides faults that matter, such as weights of another step: the check then decides
nothing."""
LONGEST = 2048
"""Tokens of a sequence that the floor is measured with, unless its response alone has more."""
SILENT = 4
"""Sequences after which no difference means none."""
FURTHER = ((64, 192), (128, 64), (192, 128))
"""Tokens appended in the two measurements, by turns: kernels change at different numbers of rows. None is fewer than
what token trees are filled up to, `attention.WHOLE`, as that would change no number of rows."""


@dataclass(frozen=True, slots=True)
class Noise:
    """`rms` is S of the floor, `spread` the standard deviation of its logarithm, `typical` and `typical_spread` the
    same of the typical difference, `sequences` those that it was measured with. `repeat` is the S of one pass made
    twice: 0 unless something is random."""

    rms: float
    spread: float
    typical: float
    typical_spread: float
    sequences: frozenset[TokenSequence]
    repeat: float
    dtype: str
    longer: float = 1.0
    """How much more noise whole sequences may have than their ends, which it was measured with."""

    @property
    def random(self) -> bool:
        """Whether the same pass made twice differs by more than rounding."""
        return self.repeat > self.rounding / 10

    @property
    def trusted(self) -> float:
        """The noise of whole sequences, or 0 where `rms` is no noise: a fault of the learner must not raise the limit
        that would find it."""
        return 0.0 if self.random or self.rms > UNDECIDABLE else self.rms * self.longer

    @property
    def rounding(self) -> float:
        """`ROUNDING` of the dtype."""
        return ROUNDING[self.dtype]

    def limits(self, sequences: int, rounding: float | None = None) -> tuple[float, float]:
        """What S and the typical difference over that many sequences may be; `rounding` in place of the dtype's."""
        least, share = self.rounding if rounding is None else rounding, len(self.sequences) / max(sequences, 1)
        typical = self.typical if self.trusted else 0.0
        return (
            max(least, self.trusted * factor(self.spread * math.sqrt(max(1.0, share)))),
            max(least, typical * factor(self.typical_spread * math.sqrt(1 + share))),
        )

    def judge(self, differences: Sequence[np.ndarray], rounding: float | None = None) -> tuple[float, float]:
        """Of S and the typical size of `differences`, by sequence, the one that is larger beside its limit, and that
        limit."""
        limits = self.limits(len(differences), rounding)
        found = zip((trimmed_rms(differences), typical_size(differences)), limits, strict=True)
        return max(found, key=lambda one: one[0] / one[1])

    def finds(self, sequences: int, rounding: float | None = None) -> float:
        """The smallest difference of most tokens that is taken for a fault."""
        return min(self.limits(sequences, rounding))

    def mean_limit(self, sequences: int) -> float:
        """What the mean difference over that many sequences may be."""
        return self.rounding / 10 + Z * CUTS * self.trusted / math.sqrt(max(sequences, 1))

    def with_rounding(self, rms: float) -> Noise:
        """With a further, independent source of noise."""
        typical = math.hypot(self.typical if self.trusted else 0.0, rms)
        return replace(self, rms=math.hypot(self.trusted, rms), typical=typical, longer=1.0)


def factor(spread: float) -> float:
    """CUTS * exp(Z * s) of the module's docstring."""
    return CUTS * margin(spread)


def margin(spread: float) -> float:
    """exp(Z * s): what two sizes of the same distribution may differ by, `spread` being the standard deviation of the
    logarithm of their ratio."""
    return math.exp(Z * spread)


def least_spread(sequences: int) -> float:
    """The standard deviation of log S over that many independent sequences against as many."""
    return math.sqrt(2 / max(sequences, 1)) / 2


def trimmed_rms(differences: Sequence[np.ndarray]) -> float:
    """S of the module's docstring, of differences by sequence."""
    return math.sqrt(float(np.mean(np.concatenate(trimmed(differences)) ** 2))) if differences else 0.0


def typical_size(differences: Sequence[np.ndarray]) -> float:
    """1.48 times the median of |d|: the standard deviation, if d were normal."""
    return NORMAL * float(np.median(np.abs(np.concatenate(differences)))) if differences else 0.0


def log_spread(size: Callable[[Sequence[np.ndarray]], float], samples: Sequence[np.ndarray]) -> float:
    """The standard deviation of log `size` of `samples`, by 200 bootstraps over them; at least that of as many
    independent normal numbers, and that alone where too many are 0."""
    draw = np.random.default_rng(0).integers(0, max(len(samples), 1), (BOOTSTRAPS, len(samples)))
    sizes = np.array([size([samples[n] for n in chosen]) for chosen in draw]) if samples else np.zeros(1)
    least = least_spread(len(samples)) / math.sqrt(2)
    return least if (sizes <= 0).any() else max(least, float(np.log(sizes).std()))


def trimmed(differences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`differences` with 0 in place of the largest `TRIMMED` of all."""
    everyone = np.sort(np.abs(np.concatenate(differences)))
    left_out = min(len(everyone), max(1, math.ceil(TRIMMED * len(everyone))))
    bound = everyone[len(everyone) - left_out] if left_out else math.inf
    return [np.where(np.abs(d) < bound, d, 0.0) for d in differences]


def slope(differences: Sequence[np.ndarray], by: Sequence[np.ndarray], noise: float) -> tuple[float, float]:
    """The slope b of d = b x through 0 and how far off noise may make it: the larger of what the scatter over sequences
    says (a sandwich estimate, with the t-quantile) and of what `noise` (S) by token gives (with Z, as it was measured
    apart). `differences` d and `by` x are by sequence."""
    size = sum(float(x @ x) for x in by)
    if not size:
        return 0.0, 0.0
    found = sum(float(x @ d) for x, d in zip(by, differences, strict=True)) / size
    off = [float(x @ (d - found * x)) for x, d in zip(by, differences, strict=True)]
    scatter = math.sqrt(sum(value**2 for value in off)) / size
    return found, max(t_quantile(len(by) - 1) * scatter, Z * noise / math.sqrt(size))


def t_quantile(degrees: int) -> float:
    """Student's t quantile that Z is of the normal, by its Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5)."""
    n = max(degrees, 1)
    return Z + (Z**3 + Z) / (4 * n) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * n**2)


def noise_floor(decoder: PolicyModel, sequences: Sequence[TokenSequence], count: int = 12) -> Noise:
    """Measure the floor with `count` of `sequences`, spread evenly: three forward passes of each. Where the first
    `SILENT` show no difference at all, the others are taken to show none either."""
    different = list(dict.fromkeys(sequences))
    chosen = [different[n * len(different) // count] for n in range(count)] if len(different) > count else different
    measured: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, sequence in enumerate(chosen):
        if number == SILENT and not any(found.any() for found in (*measured[0], *measured[1])):
            break
        alone = _scored(decoder, sequence)
        for found, further in zip(measured, FURTHER[number % len(FURTHER)], strict=True):
            found.append(_scored(decoder, sequence, further) - alone)
    # Several, as of a response of one token nothing is left.
    repeat = trimmed_rms([_scored(decoder, one) - _scored(decoder, one) for one in chosen[:SILENT]])
    dtype = str(decoder.dtype).removeprefix("torch.")
    longer = max((math.sqrt(_size(sequence) / _size(_end(sequence))) for sequence in chosen), default=1.0)
    every = [*measured[0], *measured[1]]
    # What shows no difference at all was computed alike, and says nothing of what a difference would be.
    differ = [d[d != 0] for d in (np.concatenate(pair) for pair in zip(*measured, strict=True)) if d.any()]
    return Noise(
        rms=trimmed_rms(every),
        spread=_spread(*measured, len(chosen)),
        typical=longer * typical_size(differ),
        typical_spread=log_spread(typical_size, differ) if differ else least_spread(len(chosen)),
        sequences=frozenset(chosen),
        repeat=repeat,
        dtype=dtype,
        longer=longer,
    )


def _spread(first: Sequence[np.ndarray], second: Sequence[np.ndarray], sequences: int) -> float:
    a, b = (
        np.array([float(np.mean(d**2)) for d in trimmed(found)]) if found else np.zeros(0) for found in (first, second)
    )
    least = least_spread(sequences)
    if not (a.sum() > 0 and b.sum() > 0):
        return least
    return max(least, float(np.sqrt(((b - b.sum() / a.sum() * a) ** 2).sum()) / (2 * b.sum())))


def _size(sequence: TokenSequence) -> int:
    return len(sequence.prompt_ids) + len(sequence.response_ids)


def _end(sequence: TokenSequence) -> TokenSequence:
    """The sequence with as much of its prompt as makes `LONGEST` tokens, and at least one."""
    kept = max(1, LONGEST - len(sequence.response_ids))
    return replace(sequence, prompt_ids=sequence.prompt_ids[-kept:])


def _scored(decoder: PolicyModel, whole: TokenSequence, further: int = 0) -> np.ndarray:
    """The log-probabilities of the response of `whole` after the end of its prompt, with that many tokens appended;
    with gradients on, as the learner computes."""
    sequence = _end(whole)
    ids = sequence.prompt_ids + sequence.response_ids
    more = tuple(ids[n % len(ids)] for n in range(min(further, decoder.context_length - len(ids))))
    longer = [replace(sequence, response_ids=sequence.response_ids + more)]
    if sequence.constraint is not None:  # which knows nothing of the tokens appended
        plain = TokenSequence(ids, more, sequence.temperature, adapter=sequence.adapter)
        longer = [sequence, plain] if more else [sequence]
    return score(decoder, longer).log_probs.detach()[: len(sequence.response_ids)].double().cpu().numpy()
