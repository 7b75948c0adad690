"""Confidence intervals for evaluations. numpy only; the same input gives the same numbers on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

_DRAWS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, without continuity correction.

    With p = successes / n and z the normal quantile of (1 + confidence) / 2:
    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n). It never leaves [0, 1], and keeps its coverage at small n
    and near 0 and 1, where the textbook interval does not. E. B. Wilson, JASA 22 (1927); method 3 of R. G. Newcombe,
    Statistics in Medicine 17 (1998). With no observations (n = 0) the interval is [0, 1].
    """
    _check_confidence(confidence)
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} is not a proportion")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(low, high)


def bootstrap_mean(
    values: Sequence[float], seed: int = 0, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of the mean of `values`.

    Draws `resamples` samples of the same size with replacement and takes the (1 -+ confidence) / 2 quantiles of their
    means. B. Efron, Annals of Statistics 7 (1979). With few values (below about 10) it is too narrow.
    """
    _check_confidence(confidence)
    if len(values) == 0:
        raise ValueError("no values to take a mean of")
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError("values must be finite")
    generator = np.random.Generator(np.random.PCG64(seed))
    chunk = max(1, _DRAWS_AT_ONCE // len(data))
    means = np.concatenate(
        [
            data[generator.integers(0, len(data), size=(min(chunk, resamples - start), len(data)))].mean(axis=1)
            for start in range(0, resamples, chunk)
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
