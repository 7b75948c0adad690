"""Confidence intervals against published values and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.statistics import bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_ends_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n, 0.9)
    z, p = 1.6448536269514722, successes / n
    assert 0 <= low <= p <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(p - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


@given(st.integers(1, 200), st.data())
def test_wilson_is_symmetric_in_success_and_failure(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_no_observations_give_the_full_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_invalid_proportions(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"not a proportion|confidence"):
        wilson(*arguments)  # type: ignore[arg-type]


def test_bootstrap_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(7).normal(2.0, 3.0, size=400)
    low, high = bootstrap_mean(list(values), seed=1)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_of_two_values_is_exact() -> None:
    # Means of two draws from {0, 1} are 0, 1/2, 1 with 1/4, 1/2, 1/4: the middle 95 % reaches both ends, the middle
    # 40 % is the single point 1/2.
    assert bootstrap_mean([0.0, 1.0]) == (0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_depends_only_on_its_seed() -> None:
    values = [0.1, 0.9, 0.4, 0.8, 0.2, 0.7]
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5, resamples=50) != bootstrap_mean(values, seed=6, resamples=50)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_bootstrap_refuses_empty_and_infinite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        bootstrap_mean(values)
