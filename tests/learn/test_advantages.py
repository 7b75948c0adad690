"""Golden advantages: what each name in the field means, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, TrainingError
from midstream.core.types import Step, Task, Trajectory
from midstream.learn.algorithms import AlgorithmConfig
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.grpo import GDPO, GRPO, DrGRPO, FlowGRPO, GiGPO, RoleGRPO, StepwiseGRPO
from midstream.learn.algorithms.outcome import Outcome, PolicyOutputs, TurnOutcome, outcome_of, returns
from midstream.learn.algorithms.reinforce import (
    GPG,
    OPO,
    RLOO,
    MaxRL,
    Reinforce,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    RoleBaseline,
)
from midstream.learn.algorithms.supervised import DPO, Distill, Imitate

WINNER = [1.0, 0.0, 0.0, 0.0]


def blank(tokens: int) -> PolicyOutputs:
    """A turn of which everything was read, and all of it 0."""
    return PolicyOutputs(*[(0.0,) * tokens] * 4)


def trajectory(reward: float, earned: Sequence[float] = (0.0,), tokens: Sequence[int] = (), **given) -> Outcome:
    """A trajectory whose turns earned that much each and have that many tokens, two where nothing is said."""
    sizes = tokens or (2,) * len(earned)
    roles, states = given.pop("roles", ("planner",) * len(earned)), given.pop("states", range(len(earned)))
    outputs = given.pop("outputs", [blank(size) for size in sizes])
    turns = zip(sizes, roles, earned, states, outputs, strict=True)
    return Outcome(reward, tuple(TurnOutcome(*turn) for turn in turns), **given)


def of(algorithm: Algorithm, groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """The advantages of trajectories of one turn that earned those rewards."""
    found = algorithm.advantages([[trajectory(reward, (reward,)) for reward in group] for group in groups])
    return [[credit[0] for credit in group] for group in found]  # type: ignore[misc]


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
    (found,) = of(algorithm(**settings_), [WINNER])
    assert found[0] == pytest.approx(winner, abs=6e-6)
    assert found[1:] == pytest.approx([losers] * 3, abs=6e-6)


@pytest.mark.parametrize("std", ["group", "batch", "batch_rewards", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 0.1])
def test_a_group_of_equal_rewards_teaches_nothing_in_any_variant(std, value: float) -> None:
    for ddof in (0, 1):
        algorithm = GRPO(std=std, ddof=ddof, eps=0.0)
        assert of(algorithm, [[value] * 3, WINNER])[0] == [0.0] * 3
        assert of(algorithm, [[value] * 7]) == [[0.0] * 7]


@pytest.mark.parametrize("std", ["group", "batch", "batch_rewards", "none"])
def test_a_group_of_one_has_no_advantage(std) -> None:
    assert of(GRPO(std=std), [[5.0], WINNER])[0] == [0.0]


def test_the_batch_variant_divides_every_group_by_one_number() -> None:
    (first, second) = of(GRPO(std="batch", eps=0.0), [[1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    scale = math.sqrt((0.25 + 0.25) / 6)
    assert first == pytest.approx([0.5 / scale, -0.5 / scale])
    assert second == [0.0] * 4
    (one, other) = of(GRPO(std="batch"), [[1.0, 0.0], [10.0, 0.0]])
    assert other[0] == pytest.approx(10 * one[0])


def test_the_spread_of_the_batchs_rewards_holds_what_lies_between_groups_too() -> None:
    """Of 3, 1, 0, 0 the mean is 1 and the squares of what is left sum to 6: s is sqrt(6 / 3), or sqrt(6 / 4)."""
    groups = [[3.0, 1.0], [0.0, 0.0]]
    assert of(GRPO(std="batch_rewards", eps=0.0), groups) == [pytest.approx([2**-0.5, -(2**-0.5)]), [0.0, 0.0]]
    (first, _) = of(GRPO(std="batch_rewards", ddof=0, eps=0.5), groups)
    assert first[0] == pytest.approx(1 / (1.5**0.5 + 0.5))


def test_statistics_are_over_trajectories_and_not_over_turns() -> None:
    """A: R = 1 in one turn; B: R = 0 in three. The baseline is 0.5, where counting turns would make it 0.25."""
    group = [trajectory(1.0, (0.0,)), trajectory(0.0, (0.0, 0.0, 0.0))]
    assert FlowGRPO(std="none").advantages([group]) == [[[0.5], [-0.5, -0.5, -0.5]]]


def test_reinforce_takes_the_mean_of_the_batch_or_nothing() -> None:
    assert of(Reinforce(), [[1.0, 0.0], [0.0, 0.0]]) == [[0.75, -0.25], [-0.25, -0.25]]
    assert of(Reinforce(baseline="none"), [[1.0, 0.0]]) == [[1.0, 0.0]]


rewards = st.lists(st.lists(st.sampled_from([0.0, 0.3, 1.0, -2.0]), min_size=2, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    groups=rewards, std=st.sampled_from(["group", "batch", "batch_rewards", "none"]), shift=st.sampled_from([0.0, 3.0])
)
def test_advantages_of_a_group_sum_to_zero_and_ignore_what_all_rewards_share(groups, std, shift) -> None:
    algorithm = GRPO(std=std)
    found = of(algorithm, groups)
    moved = of(algorithm, [[reward + shift for reward in group] for group in groups])
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


@pytest.mark.parametrize(
    ("algorithm", "winner", "losers"),
    [(RLOO(), 1.0, -1 / 3), (MaxRL(), 3.0, -1.0), (GPG(), 3.0, -1.0), (DrGRPO(), 0.75, -0.25), (OPO(), 0.75, -0.25)],
    ids=lambda value: getattr(value, "name", None),
)
def test_one_winner_of_four_by_other_names(algorithm: Algorithm, winner: float, losers: float) -> None:
    (found,) = of(algorithm, [WINNER])
    assert found == pytest.approx([winner, *[losers] * 3], abs=2e-5)


@pytest.mark.parametrize("algorithm", [RLOO(), MaxRL(), GPG(), DrGRPO(), GDPO()], ids=lambda a: a.name)
def test_alone_or_equal_in_its_group_a_trajectory_teaches_nothing(algorithm: Algorithm) -> None:
    assert of(algorithm, [[5.0], [0.1, 0.1, 0.1]]) == [[0.0], [0.0] * 3]


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    rewards = [1.0, 0.25, -2.0]
    (found,) = of(RLOO(), [rewards])
    assert found == pytest.approx([r - (sum(rewards) - r) / 2 for r in rewards])


def test_the_greedy_attempt_is_the_baseline_or_else_the_mean() -> None:
    given = [trajectory(1.0, greedy=0.25), trajectory(0.0, greedy=0.25)]
    assert ReMax().advantages([given]) == [[[0.75], [-0.25]]]
    assert ReMax().advantages([[trajectory(1.0), trajectory(0.0)]]) == [[[0.5], [-0.5]]]


def test_the_optimal_baseline_weighs_rewards_by_length() -> None:
    group = [trajectory(1.0, (1.0,), (9,)), trajectory(0.0, (0.0,), (1,))]
    assert OPO().advantages([group])[0] == [[pytest.approx(0.1)], [pytest.approx(-0.9)]]


def test_returns_credit_a_turn_with_what_came_after_it() -> None:
    outcome = trajectory(1.75, (0.25, 0.5, 1.0))
    assert returns(outcome, 1.0) == [1.75, 1.5, 1.0]
    assert returns(outcome, 0.5) == [0.75, 1.0, 1.0]
    found = Reinforce(baseline="none", credit="return", discount=0.5).advantages([[outcome]])
    assert found == [[[0.75, 1.0, 1.0]]]
    found = Reinforce(baseline="none", credit="return", discount=0.5, horizon=2).advantages([[outcome]])
    assert found == [[[0.5, 1.0, 1.0]]]
    found = Reinforce(credit="return").advantages([[outcome]])
    assert found[0][0] == pytest.approx([1.75 - 17 / 12, 1.5 - 17 / 12, 1.0 - 17 / 12])


def test_reinforce_plus_plus_whitens_the_reward_to_go_of_every_token() -> None:
    """To go at discount 0.5: [0.25, 0.5, 1] over two turns, the observation between them taking no time; and 0."""
    first = trajectory(1.0, (0.0, 1.0), (1, 2))
    groups = [[first, trajectory(0.0, (0.0,), (1,))]]
    raw = [0.25, 0.5, 1.0, 0.0]
    mean = sum(raw) / 4
    scale = math.sqrt(sum((r - mean) ** 2 for r in raw) / 3 + 1e-8)
    expected = [(r - mean) / scale for r in raw]
    found = ReinforcePlusPlus(discount=0.5).advantages(groups)
    assert found[0][0][0] == pytest.approx(expected[:1]) and found[0][0][1] == pytest.approx(expected[1:3])
    assert found[0][1][0] == pytest.approx(expected[3:])


def test_with_a_baseline_the_group_is_centred_before_the_batch_is_whitened() -> None:
    groups = [[trajectory(1.0, (1.0,), (1,)), trajectory(0.0, (0.0,), (3,))], [trajectory(7.0, (7.0,), (2,))]]
    raw = [0.5, -0.5, -0.5, -0.5, 0.0, 0.0]
    mean = sum(raw) / 6
    scale = math.sqrt(sum((r - mean) ** 2 for r in raw) / 5 + 1e-8)
    found = ReinforcePlusPlusBaseline().advantages(groups)
    flat = [value for group in found for own in group for turn in own for value in turn]  # type: ignore[union-attr]
    assert flat == pytest.approx([(r - mean) / scale for r in raw])


def test_each_role_is_compared_with_itself() -> None:
    roles = ("planner", "generator")
    group = [trajectory(1.0, (1.0, 0.0), roles=roles), trajectory(3.0, (1.0, 2.0), roles=roles)]
    # Planner: returns 1 and 3; generator: 0 and 2.
    assert RoleGRPO(std="none").advantages([group]) == [[[-1.0, -1.0], [1.0, 1.0]]]
    last = [trajectory(1.0, (0.0, 1.0), roles=roles), trajectory(1.0, (1.0, 0.0), roles=roles)]
    assert RoleGRPO(std="none").advantages([last]) == [[[0.0, 0.5], [0.0, -0.5]]]


def test_steps_add_to_the_outcome_by_their_weight() -> None:
    group = [trajectory(1.0, (0.0, 1.0)), trajectory(0.0, (0.0, 0.0))]
    plain = FlowGRPO(std="none").advantages([group])
    assert plain == [[[0.5, 0.5], [-0.5, -0.5]]]
    # Returns of the planner's four turns: 1, 1, 0, 0.
    assert StepwiseGRPO(std="none", step_weight=0.5).advantages([group]) == [[[0.75, 0.75], [-0.75, -0.75]]]
    assert StepwiseGRPO(std="none", step_weight=0.0).advantages([group]) == plain


def test_turns_that_began_in_the_same_state_are_a_group_of_their_own() -> None:
    """Both begin in `a`; from there one reaches `b` and wins, the other `c` and loses; `b` and `c` are alone."""
    group = [trajectory(1.0, (0.0, 1.0), states="ab"), trajectory(0.0, (0.0, 0.0), states="ac")]
    found = GiGPO(std="none", discount=0.5, step_weight=2.0).advantages([group])
    assert found == [[[0.5 + 2 * 0.25, 0.5], [-0.5 - 2 * 0.25, -0.5]]]


def test_each_role_has_a_baseline_that_runs_from_step_to_step() -> None:
    algorithm = RoleBaseline(decay=0.9)
    won, lost = (
        [trajectory(0.0, earned, roles=("x", "o", "x")) for earned in ((0.0, -1.0, 1.0), (0.0, 1.0, -1.0))],
        [trajectory(1.0, (0.25, 0.75), roles=("x", "x"), memory={"x": 0.5, "y": 7.0})],
    )
    assert algorithm.advantages([won]) == [[[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]]
    assert algorithm.remember([won]) == {"o": 0.0, "x": 0.0}
    assert algorithm.advantages([lost]) == [[[0.5, 0.5]]]
    assert algorithm.remember([lost]) == {"x": pytest.approx(0.9 * 0.5 + 0.1 * 1.0), "y": 7.0}
    whole = RoleBaseline(credit="trajectory").advantages(
        [[trajectory(1.0, (0.0, 0.0), roles=("x", "o"), memory={"o": 0.25})]]
    )
    assert whole == [[[0.0, 0.75]]]


def test_imitation_averages_over_the_tokens_of_those_chosen() -> None:
    group = [
        trajectory(1.0, (0.0, 1.0), tokens=(3, 2)),
        trajectory(0.5, (0.5,), tokens=(9,)),
        trajectory(2.0, (2.0,), tokens=(5,)),
    ]
    assert Imitate().advantages([group]) == [[[0.1, 0.1], [0.0], [0.1]]]
    assert Imitate(best=True).advantages([group]) == [[[0.0, 0.0], [0.0], [0.2]]]
    assert Imitate().metrics([group]) == {"chosen": 2.0}
    assert Imitate(at_least=3.0).advantages([group]) == [[[0.0, 0.0], [0.0], [0.0]]]


def preferred(reward: float, policy: Sequence[float], reference: Sequence[float]) -> Outcome:
    return trajectory(reward, (reward,), (len(policy),), outputs=[PolicyOutputs(policy, reference=reference)])


def test_pairs_pull_by_how_wrong_the_policy_ranks_them() -> None:
    """d of the better is 0.5, of the worse -0.25: the margin is beta 0.75."""
    pair = [
        preferred(1.0, (-1.0, -2.0), (-1.5, -2.0)),
        preferred(0.0, (-1.25,), (-1.0,)),
        preferred(0.5, (-1.0,), (-1.0,)),
    ]
    margin = 0.4 * 0.75
    pull = 0.4 / (1 + math.exp(margin))
    assert DPO(beta=0.4).advantages([pair]) == [[[pytest.approx(pull)], [pytest.approx(-pull)], [0.0]]]
    found = DPO(beta=0.4).metrics([pair])
    assert found["pair_loss"] == pytest.approx(-math.log(1 / (1 + math.exp(-margin))))
    assert found["pair_margin"] == pytest.approx(margin) and found["pair_accuracy"] == 1.0 and found["pairs"] == 1.0
    every = DPO(beta=0.4, pairs="all")
    assert every.metrics([pair])["pairs"] == 3.0
    assert sum(a[0] for a in every.advantages([pair])[0]) == pytest.approx(0.0)  # type: ignore[misc]
    assert DPO().advantages([pair[:1]]) == [[[0.0]]]


def test_a_teacher_judges_every_token() -> None:
    turn = preferred(0.0, (-1.0, -2.0), (-0.5, -3.0))
    assert Distill().advantages([[turn]]) == [[[[0.5, -1.0]]]]
    assert Distill().metrics([[turn]]) == {"teacher_kl": pytest.approx(0.25)}


def test_every_component_counts_for_its_own_spread() -> None:
    """Component a: 100, 0; b: 0.01, 0 in one group; each is +-1/sqrt(2) normalised, whatever its size."""
    big, small = {"a": 100.0, "b": 0.0}, {"a": 0.0, "b": 0.01}
    found = GDPO(eps=0.0).advantages([[trajectory(100.0, components=big), trajectory(0.01, components=small)]])
    assert found == [[[0.0], [0.0]]]
    found = GDPO(eps=0.0, weights={"b": 3.0}).advantages(
        [[trajectory(100.0, components=big), trajectory(0.01, components=small)]]
    )
    assert found[0][0][0] == pytest.approx(-1 / math.sqrt(2)) and found[0][1][0] == pytest.approx(1 / math.sqrt(2))
    missing = [trajectory(1.0, components={"a": 1.0, "b": None}), trajectory(0.0, components={"a": 0.0, "b": 1.0})]
    assert GDPO(eps=0.0).advantages([missing])[0][0][0] == pytest.approx(1 / math.sqrt(2))


def test_a_component_that_is_not_named_has_its_weight_in_the_reward() -> None:
    groups = [
        [
            trajectory(0.0, components={"correctness": right, "failed_calls": calls, "success": right})
            for right, calls in ((1.0, 0.0), (1.0, 3.0), (0.0, 3.0))
        ]
    ]
    given = GDPO(weights={"correctness": 2.0}).for_reward({"correctness": 1.0, "failed_calls": -1.0, "success": 0.0})
    assert given.weights == {"correctness": 2.0, "failed_calls": -1.0, "success": 0.0}
    best, middle, worst = (own[0] for own in given.advantages(groups)[0])
    assert best > middle > worst  # type: ignore[operator]


def test_a_negative_reward_has_no_place_in_maxrl() -> None:
    with pytest.raises(TrainingError, match=r"reward of -0\.5"):
        of(MaxRL(), [[1.0, -0.5]])


def test_nobody_chosen_has_tokens_to_learn_from() -> None:
    assert Imitate().advantages([[trajectory(1.0, ())]]) == [[[]]]


def test_the_spread_of_the_batch_is_over_steps_of_all_groups() -> None:
    groups = [[trajectory(r, (r,)) for r in (0.0, 2.0)], [trajectory(r, (r,)) for r in (0.0, 20.0)]]
    found = [[own[0] for own in group] for group in RoleGRPO(std="batch", eps=0.0).advantages(groups)]
    scale = math.sqrt((1 + 1 + 100 + 100) / 4)
    assert found == [pytest.approx([-1 / scale, 1 / scale]), pytest.approx([-10 / scale, 10 / scale])]


@pytest.mark.parametrize("state", [{"room": "hall", "seen": [1, 2]}, [1, 2], (1, 2), "hall", None])
def test_a_state_may_be_anything_that_can_be_written_down(state: object) -> None:
    steps = [Step(prompt_ids=(n,), response_ids=(1,), metadata={"state": state}) for n in range(2)]
    found = [
        outcome_of(Trajectory(uid="u", prompt_uid="g", task=Task(id="t", prompt="?"), steps=(step,)), [step])
        for step in steps
    ]
    assert len({outcome.turns[0].state for outcome in found}) == 1


def test_an_outcome_says_what_each_trainable_turn_earned_until_the_next() -> None:
    def step(index: int, reward: float | None, trainable: bool = True) -> Step:
        return Step(
            prompt_ids=(1, index),
            response_ids=(2, 3),
            rollout_log_probs=(-1.0, -1.0),
            step_index=index,
            reward=reward,
            role="planner" if trainable else "executor",
            trainable=trainable,
        )

    steps = (step(0, 0.25), step(1, 0.5, trainable=False), step(2, None), step(3, 1.0, trainable=False))
    whole = Trajectory(uid="u", prompt_uid="p", task=Task(id="t", prompt="?"), steps=steps, reward=1.75)
    found = outcome_of(whole, [steps[0], steps[2]])
    assert [turn.reward for turn in found.turns] == [0.75, 1.0] and found.reward == 1.75
    assert [turn.state for turn in found.turns] == [(1, 0), (1, 2)] and found.tokens == 4


def test_every_algorithm_has_a_name_and_takes_groups_of_any_shape() -> None:
    adapter: TypeAdapter[Algorithm] = TypeAdapter(AlgorithmConfig)
    names = list(adapter.json_schema()["discriminator"]["mapping"])
    assert len(names) == 20
    for name in names:
        lowest = 0.0 if name == "maxrl" else -1.0
        group = [trajectory(1.0, (0.5, 0.5)), trajectory(0.0, ()), trajectory(lowest, (lowest,))]
        for groups in ([], [group], [[trajectory(1.0)], group], [group, group]):
            found = adapter.validate_python({"name": name}).advantages(groups)
            assert [[len(own) for own in g] for g in found] == [[len(o.turns) for o in g] for g in groups], name
