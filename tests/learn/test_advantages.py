"""Golden advantages: what each name in the field means, as numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.learn.algorithms.grpo import GRPO, FlowGRPO
from midstream.learn.algorithms.reinforce import Reinforce

WINNER = [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("algorithm", [GRPO, FlowGRPO])
@pytest.mark.parametrize(
    ("settings_", "winner", "losers"),
    [
        ({"std": "group", "ddof": 1, "eps": 1e-4}, 1.49970, -0.49990),
        ({"std": "group", "ddof": 1, "eps": 1e-6}, 1.499997, -0.499999),
        ({"std": "group", "ddof": 0, "eps": 1e-6}, 1.73205, -0.57735),
        ({"std": "none"}, 0.75, -0.25),
        ({}, 1.499997, -0.499999),
    ],
    ids=["TRL", "verl", "rLLM", "prime-rl", "default is verl's"],
)
def test_one_winner_of_four(algorithm, settings_, winner: float, losers: float) -> None:
    (found,) = algorithm(**settings_).advantages([WINNER])
    assert found[0] == pytest.approx(winner, abs=6e-6)
    assert found[1:] == pytest.approx([losers] * 3, abs=6e-6)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 0.1])
def test_a_group_of_equal_rewards_teaches_nothing_in_any_variant(std, value: float) -> None:
    for ddof in (0, 1):
        algorithm = GRPO(std=std, ddof=ddof, eps=0.0)
        assert algorithm.advantages([[value] * 3, WINNER])[0] == [0.0] * 3
        assert algorithm.advantages([[value] * 7]) == [[0.0] * 7]


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_a_group_of_one_has_no_advantage(std) -> None:
    assert GRPO(std=std).advantages([[5.0], WINNER])[0] == [0.0]


def test_the_batch_variant_divides_every_group_by_one_number() -> None:
    (first, second) = GRPO(std="batch", eps=0.0).advantages([[1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    scale = math.sqrt((0.25 + 0.25) / 6)
    assert first == pytest.approx([0.5 / scale, -0.5 / scale])
    assert second == [0.0] * 4
    (one, other) = GRPO(std="batch").advantages([[1.0, 0.0], [10.0, 0.0]])
    assert other[0] == pytest.approx(10 * one[0])


def test_statistics_are_over_trajectories_and_not_over_turns() -> None:
    """A: R = 1 in one turn; B: R = 0 in three. The baseline is 0.5, where counting turns would make it 0.25."""
    assert FlowGRPO(std="none").advantages([[1.0, 0.0]]) == [[0.5, -0.5]]


def test_reinforce_takes_the_mean_of_the_batch_or_nothing() -> None:
    assert Reinforce().advantages([[1.0, 0.0], [0.0, 0.0]]) == [[0.75, -0.25], [-0.25, -0.25]]
    assert Reinforce(baseline="none").advantages([[1.0, 0.0]]) == [[1.0, 0.0]]


rewards = st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0, -2.0]), min_size=2, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(groups=rewards, std=st.sampled_from(["group", "batch", "none"]), shift=st.sampled_from([0.0, 3.0]))
def test_advantages_of_a_group_sum_to_zero_and_ignore_what_all_rewards_share(groups, std, shift) -> None:
    algorithm = GRPO(std=std)
    found = algorithm.advantages(groups)
    moved = algorithm.advantages([[reward + shift for reward in group] for group in groups])
    for group, values, others in zip(groups, found, moved, strict=True):
        assert sum(values) == pytest.approx(0.0, abs=1e-6)
        assert values == pytest.approx(others, abs=1e-5)
        order = sorted(range(len(group)), key=lambda i: group[i])
        assert [values[i] for i in order] == sorted(values)


def test_flow_grpo_and_grpo_differ_in_how_they_average() -> None:
    assert FlowGRPO().aggregation == "trajectory_turn_token"
    assert GRPO().aggregation == "token_mean"
    with pytest.raises(ConfigError, match="did you mean 'eps'"):
        parse_config(GRPO, {"epsilon": 1.0, "esp": 1e-6})
