"""Credit per role against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.grpo import GRPO, DrGRPO, FlowGRPO, GiGPO
from midstream.learn.algorithms.outcome import Outcome, TurnOutcome
from midstream.learn.algorithms.ppo import PPO
from midstream.learn.algorithms.reinforce import OPO, RLOO, MaxRL, Reinforce, ReMax, RoleBaseline
from midstream.learn.algorithms.role_credit import DifferenceCredit, RoleEMACredit, RoleGroupCredit
from midstream.learn.config import TrainConfig


def team(reward: float, *turns: tuple[str, float], tokens: int = 2, **given: Any) -> Outcome:
    """A trajectory whose turns are (role, reward)."""
    return Outcome(reward, tuple(TurnOutcome(tokens, role, earned) for role, earned in turns), **given)


def credited(algorithm: Algorithm, *groups: list[Outcome]) -> list[list[list[Any]]]:
    return algorithm.credited(groups)  # type: ignore[return-value]


def test_by_default_every_role_gets_the_teams_advantage() -> None:
    group = [team(1.0, ("a", 1.0), ("b", 0.0)), team(0.0, ("a", 0.0), ("b", 0.0))]
    assert credited(FlowGRPO(std="none"), group) == [[[0.5, 0.5], [-0.5, -0.5]]]
    assert FlowGRPO().credited([group]) == FlowGRPO().advantages([group])


def test_role_group_compares_each_role_with_itself() -> None:
    """a earned 1 and 0 (mean 0.5), b 0 and 4 (mean 2), over two turns of it in the second trajectory."""
    group = [team(1.0, ("a", 1.0), ("b", 0.0)), team(4.0, ("b", 1.0), ("a", 0.0), ("b", 3.0))]
    algorithm = FlowGRPO(std="none", role_credit=RoleGroupCredit())
    assert credited(algorithm, group) == [[[0.5, -2.0], [2.0, -0.5, 2.0]]]
    # With ddof 0 each role is divided by its own standard deviation, 0.5 and 2, so both count as much.
    normalised = FlowGRPO(ddof=0, eps=0.0, role_credit=RoleGroupCredit())
    assert credited(normalised, group) == [[[1.0, -1.0], [1.0, -1.0, 1.0]]]


def test_a_role_is_compared_only_where_it_acted() -> None:
    """b acted in two of three trajectories, which earned 3 and 1: its baseline is 2, that of a 5 / 3."""
    group = [team(3.0, ("a", 0.0), ("b", 0.0)), team(1.0, ("a", 0.0), ("b", 0.0)), team(1.0, ("a", 0.0))]
    algorithm = DrGRPO(role_credit=RoleGroupCredit(reward="trajectory"))
    found = credited(algorithm, group, [team(7.0)])
    assert found[0][0] == [pytest.approx(3 - 5 / 3), 1.0] and found[0][2] == [pytest.approx(1 - 5 / 3)]
    assert found[1] == [[]]


def test_difference_subtracts_the_reward_without_the_role() -> None:
    """D_a = 1 - 0.5 and 0.5 - 0.5, D_b = 1 - 0 and 0.5 - 0.25: centred 0.25, -0.25 and 0.375, -0.375."""
    group = [
        team(1.0, ("a", 0.0), ("b", 1.0), without={"a": 0.5, "b": 0.0}),
        team(0.5, ("a", 0.0), ("b", 0.5), without={"a": 0.5, "b": 0.25}),
    ]
    found = credited(DrGRPO(role_credit=DifferenceCredit()), group)
    assert found == [[[0.25, 0.375], [-0.25, -0.375]]]
    plain = Reinforce(baseline="none", role_credit=DifferenceCredit())
    assert credited(plain, group) == [[[0.5, 1.0], [0.0, 0.25]]]


def test_a_missing_rerun_is_the_mean_of_the_groups_others() -> None:
    group = [
        team(1.0, ("a", 1.0), without={"a": 0.5}),
        team(1.0, ("a", 1.0), without={"a": 0.25}),
        team(1.0, ("a", 1.0)),
    ]
    found = credited(Reinforce(baseline="none", role_credit=DifferenceCredit()), group, [team(1.0, ("a", 1.0))])
    assert found == [[[0.5], [0.75], [0.625]], [[1.0]]]


def test_what_a_role_did_not_influence_cancels_out() -> None:
    """R = f_a + f_b, and without a role its part is 0: D_a is f_a, whatever b did."""
    parts = [(0.0, 5.0), (1.0, -3.0), (0.0, 0.0), (1.0, 9.0)]
    group = [team(a + b, ("a", 0.0), ("b", a + b), without={"a": b, "b": a}) for a, b in parts]
    found = credited(DrGRPO(role_credit=DifferenceCredit()), group)
    assert [own[0] for own in found[0]] == [-0.5, 0.5, -0.5, 0.5]
    assert [own[1] for own in found[0]] == [2.25, -5.75, -2.75, 6.25]


def test_role_ema_subtracts_a_running_baseline_of_each_role() -> None:
    """First step: its own means, 0.5 and 1. Then b_a = 0.75 * 0.5 + 0.25 * 2 = 0.875."""
    algorithm = GRPO(role_credit=RoleEMACredit(decay=0.75, reward="role"))
    first = [team(2.0, ("a", 1.0), ("b", 1.0)), team(1.0, ("a", 0.0), ("b", 1.0))]
    assert credited(algorithm, first) == [[[0.5, 0.0], [-0.5, 0.0]]]
    memory = algorithm.remembered([first])
    assert memory == {"a": 0.5, "b": 1.0}
    second = [team(2.0, ("a", 2.0), memory=memory)]
    assert credited(algorithm, second) == [[[1.5]]]
    assert algorithm.remembered([second]) == {"a": pytest.approx(0.875), "b": 1.0}


def test_role_ema_with_rewards_of_roles_is_the_algorithm_role_baseline() -> None:
    group = [team(3.0, ("a", 1.0), ("b", 2.0), memory={"a": 0.25}), team(0.0, ("b", 0.0), memory={"a": 0.25})]
    credit = Reinforce(role_credit=RoleEMACredit(decay=0.9, reward="role"))
    baseline = RoleBaseline(decay=0.9)
    assert credit.credited([group]) == baseline.credited([group])
    assert credit.remembered([group]) == baseline.remembered([group])


@pytest.mark.parametrize("algorithm", [FlowGRPO, GRPO, DrGRPO, RLOO, OPO], ids=lambda model: model.__name__)
@settings(max_examples=30, deadline=None)
@given(rewards=st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=4), min_size=1, max_size=3))
def test_with_one_role_and_no_reruns_every_kind_of_group_credit_is_the_shared_one(algorithm, rewards) -> None:
    groups = [[team(reward, ("a", reward)) for reward in group] for group in rewards]
    shared = algorithm().credited(groups)
    for kind in ("role_group", "difference"):
        assert algorithm(role_credit={"name": kind}).credited(groups) == shared


@pytest.mark.parametrize("algorithm", [PPO, GiGPO, RoleBaseline, ReMax], ids=lambda model: model.__name__)
def test_an_algorithm_that_values_turns_or_has_another_baseline_refuses_role_credit(algorithm) -> None:
    """ReMax would subtract a greedy attempt's whole reward from the reward of a role."""
    with pytest.raises(ConfigError, match="needs an algorithm that values whole trajectories; set name=flow_grpo"):
        parse_config(algorithm, {"role_credit": {"name": "role_group"}})
    with pytest.raises(ConfigError, match="values turns; set credit=trajectory"):
        parse_config(Reinforce, {"credit": "return", "role_credit": {"name": "role_ema"}})
    with pytest.raises(ConfigError, match="gives negative rewards"):
        parse_config(MaxRL, {"role_credit": {"name": "difference"}})


@pytest.mark.parametrize(
    ("changed", "conflict"),
    [
        ({"reward": {"normalize": "batch"}}, "reward.normalize=batch"),
        ({"rollout": {"source": {"store": "x.sqlite"}}}, "rollout.source"),
    ],
)
def test_settings_under_which_rewards_cannot_be_compared_are_refused(changed, conflict: str) -> None:
    config: dict[str, Any] = {"tasks": {"sources": [{"type": "direct"}]}, "algorithm": {"name": "grpo"}}
    config["algorithm"]["role_credit"] = {"name": "difference"}
    with pytest.raises(ConfigError, match=f"cannot be combined with {conflict}"):
        parse_config(TrainConfig, {**config, **changed})


def test_a_group_of_one_is_enough_for_a_running_baseline() -> None:
    config: dict[str, Any] = {"tasks": {"sources": [{"type": "direct"}]}, "rollout": {"group_size": 1}}
    with pytest.raises(ConfigError, match="needs at least 2 trajectories"):
        parse_config(TrainConfig, {**config, "algorithm": {"name": "flow_grpo"}})
    parse_config(TrainConfig, {**config, "algorithm": {"name": "flow_grpo", "role_credit": {"name": "role_ema"}}})
