"""Who carries loss and with what weight: only sampled tokens of trainable roles, and the weights are a mean."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.config import models_in
from midstream.core.errors import TrainingError
from midstream.core.types import Constraint, FinishReason, Status, Step, Task, Trajectory
from midstream.learn.algorithms import AlgorithmConfig
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.algorithms.outcome import PolicyOutputs
from midstream.learn.algorithms.reinforce import RoleBaseline
from midstream.learn.data.batch import LearningBatch, make_batch

TASK = Task(id="t", prompt="?", answer="1")
CENTRED = FlowGRPO(std="none")


def trajectory(
    uid: str, reward: float | None, lengths=(2,), status=Status.COMPLETED, roles: tuple[str, ...] = (), group="g"
) -> Trajectory:
    """A trajectory whose steps have that many response tokens; roles named `frozen` are not trainable."""
    roles = roles or ("planner",) * len(lengths)
    steps = tuple(
        Step(
            prompt_ids=(1, 2, index),
            response_ids=tuple(range(10, 10 + length)),
            rollout_log_probs=(-0.5,) * length,
            trajectory_uid=uid,
            step_index=index,
            role=role,
            trainable=role != "frozen",
        )
        for index, (length, role) in enumerate(zip(lengths, roles, strict=True))
    )
    return Trajectory(uid=uid, prompt_uid=group, task=TASK, steps=steps, reward=reward, status=status)


def batch_of(
    *groups: list[Trajectory], algorithm: Algorithm = CENTRED, aggregation=None, failed="mask", **options
) -> LearningBatch:
    chosen = algorithm.model_copy(update={"aggregation": aggregation}) if aggregation else algorithm
    return make_batch(groups, chosen, failed=failed, **options)


def shares(batch: LearningBatch) -> list[float]:
    """Each turn's part of the whole weight."""
    return [turn.weight * len(turn.old_log_probs) for turn in batch.turns]


def test_every_trainable_turn_of_a_trajectory_gets_its_outcome() -> None:
    """A: R = 1 in one turn; B: R = 0 in three: the baseline is 0.5."""
    batch = batch_of([trajectory("A", 1.0), trajectory("B", 0.0, lengths=(2, 3, 4))])
    assert [turn.advantages[0] for turn in batch.turns] == [0.5, -0.5, -0.5, -0.5]


def test_only_sampled_tokens_of_trainable_roles_become_turns() -> None:
    mixed = trajectory("A", 1.0, lengths=(2, 3, 4), roles=("planner", "frozen", "generator"))
    batch = batch_of([mixed, trajectory("B", 0.0, lengths=(3,), roles=("frozen",))])
    assert [(turn.role, turn.sequence.response_ids) for turn in batch.turns] == [
        ("planner", (10, 11)),
        ("generator", (10, 11, 12, 13)),
    ]
    assert batch.counts["untrainable_trajectories"] == 1
    assert sum(shares(batch)) == pytest.approx(1.0)


LONG = [trajectory("A", 1.0, lengths=(2,)), trajectory("B", 0.0, lengths=(3, 5))]


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("trajectory_turn_token", [1 / 2, 1 / 4, 1 / 4]),
        ("sequence_mean", [1 / 3, 1 / 3, 1 / 3]),
        ("token_mean", [2 / 10, 3 / 10, 5 / 10]),
    ],
)
def test_weights_are_the_mean_their_name_says(aggregation, expected) -> None:
    batch = batch_of(LONG, aggregation=aggregation)
    assert shares(batch) == pytest.approx(expected)


lengths = st.lists(st.integers(1, 5), min_size=1, max_size=4)
members = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.5]), lengths), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(members, min_size=1, max_size=3),
    aggregation=st.sampled_from(["trajectory_turn_token", "sequence_mean", "token_mean"]),
)
def test_weights_of_all_tokens_sum_to_one(groups, aggregation) -> None:
    made = [
        [trajectory(f"{g}-{m}", reward, size, group=str(g)) for m, (reward, size) in enumerate(group)]
        for g, group in enumerate(groups)
    ]
    batch = batch_of(*made, aggregation=aggregation, keep_zero=True)
    assert sum(shares(batch)) == pytest.approx(1.0)
    assert all(turn.weight > 0 for turn in batch.turns)
    dropped = batch_of(*made, aggregation=aggregation)
    kept = {(t.group, t.sequence, t.advantages, t.weight) for t in batch.turns if any(t.advantages)}
    assert kept == {(t.group, t.sequence, t.advantages, t.weight) for t in dropped.turns}


def test_a_group_of_equal_rewards_costs_nothing_and_stays_in_the_denominator() -> None:
    flat = [trajectory("C", 1.0, group="h"), trajectory("D", 1.0, group="h")]
    batch = batch_of(LONG, flat)
    assert batch.counts["zero_variance_groups"] == 1
    assert shares(batch) == pytest.approx([1 / 4, 1 / 8, 1 / 8])
    kept = batch_of(LONG, flat, keep_zero=True)
    assert [turn.advantages[0] for turn in kept.turns] == [0.5, -0.5, -0.5, 0.0, 0.0]
    assert sum(shares(kept)) == pytest.approx(1.0)


CRASHED = trajectory("C", None, status=Status.FAILED)


def test_drop_leaves_a_failed_trajectory_out_altogether() -> None:
    with_it, without = batch_of([*LONG, CRASHED], failed="drop"), batch_of(LONG)
    assert with_it.turns == without.turns
    assert with_it.counts["failed_trajectories"] == 1


def test_mask_leaves_it_out_of_the_statistics_and_keeps_its_place_in_the_mean() -> None:
    batch = batch_of([*LONG, CRASHED], failed="mask")
    assert [turn.advantages[0] for turn in batch.turns] == [0.5, -0.5, -0.5]
    assert shares(batch) == pytest.approx([1 / 3, 1 / 6, 1 / 6])


SILENT = trajectory("S", None, lengths=(), status=Status.FAILED)
"""It failed before anything was said."""


@pytest.mark.parametrize(
    ("aggregation", "places"),
    [
        ("trajectory_turn_token", 3),
        ("prompt_mean", 1),
        ("token_mean", 2),  # where tokens or turns have places, it has none to give one to
        ("sequence_mean", 2),
    ],
)
def test_a_masked_trajectory_keeps_its_place_though_it_never_came_to_speak(aggregation: str, places: int) -> None:
    one_turn = [trajectory("A", 1.0), trajectory("B", 0.0)]
    batch = batch_of([*one_turn, SILENT], aggregation=aggregation)
    own = 2 if aggregation != "prompt_mean" else 1
    assert sum(shares(batch)) == pytest.approx(own / places)
    assert batch.counts["untrainable_trajectories"] == batch.counts["failed_trajectories"] == 1
    assert batch_of([*one_turn, SILENT], aggregation=aggregation, failed="drop").turns == (
        batch_of(one_turn, aggregation=aggregation).turns
    )


def test_a_prompt_whose_attempts_all_failed_keeps_its_place_among_prompts() -> None:
    lost = [replace(SILENT, prompt_uid="h"), replace(SILENT, uid="T", prompt_uid="h")]
    assert sum(shares(batch_of(LONG, lost, aggregation="prompt_mean"))) == pytest.approx(1 / 2)
    assert sum(shares(batch_of(LONG, lost, aggregation="prompt_mean", failed="drop"))) == pytest.approx(1)
    assert sum(shares(batch_of(LONG, lost, aggregation="trajectory_turn_token"))) == pytest.approx(2 / 4)


def test_score_trains_on_it_with_the_reward_it_was_given() -> None:
    scored = replace(CRASHED, reward=-0.5)
    batch = batch_of([*LONG, scored], failed="score")
    mean = 0.5 / 3
    assert [turn.advantages[0] for turn in batch.turns] == pytest.approx([1 - mean, -mean, -mean, -0.5 - mean])
    # A reward does not make a failed trajectory count under the other two rules.
    assert batch_of([*LONG, scored], failed="drop").turns == batch_of(LONG).turns


@pytest.mark.parametrize("failed", ["drop", "mask"])
def test_a_group_of_failures_is_counted_as_empty(failed) -> None:
    batch = batch_of(LONG, [replace(CRASHED, prompt_uid="h")], failed=failed)
    assert batch.counts["empty_groups"] == 1
    assert [turn.advantages[0] for turn in batch.turns] == [0.5, -0.5, -0.5]


def test_a_timed_out_trajectory_is_a_failed_one_and_an_unscored_one_has_no_advantage() -> None:
    late = trajectory("late", 9.0, status=Status.TIMED_OUT)
    unscored = trajectory("unscored", None)
    batch = batch_of([*LONG, late, unscored], failed="drop")
    assert [turn.advantages[0] for turn in batch.turns] == [0.5, -0.5, -0.5]


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_stops_training_and_names_its_trajectory(reward: float) -> None:
    with pytest.raises(TrainingError, match="'broken'"):
        batch_of([trajectory("A", 1.0), trajectory("broken", reward)])


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_not_finite_beside_a_reward_names_its_trajectory_too() -> None:
    good, broken = trajectory("A", 1.0), trajectory("broken", 0.0)
    steps = tuple(replace(step, rollout_log_probs=(-0.5, math.nan)) for step in broken.steps)
    with pytest.raises(TrainingError, match="'broken' of the group 'g' has a log-probability that is not finite, in "):
        batch_of([good, replace(broken, steps=steps)])
    # A group that teaches nothing, and a trajectory that failed, are no less a sign of broken weights.
    with pytest.raises(TrainingError, match="'broken'"):
        batch_of([replace(good, reward=0.0), replace(broken, steps=steps)])
    with pytest.raises(TrainingError, match="'broken'"):
        batch_of([good, replace(broken, steps=steps, status=Status.FAILED, reward=None)])
    with pytest.raises(TrainingError, match="an advantage of trajectory 'A' in the group 'g' is "):
        batch_of([replace(good, reward=1.7e308), replace(broken, reward=1.6e308)])  # their sum is infinite


ALGORITHMS = models_in(AlgorithmConfig)
WHITENED = ("reinforce_plus_plus_baseline",)
"""Centred over the whole batch after the group: 0 in a group of one only becomes 0 where all groups are."""


def rewarded(one: Trajectory) -> Trajectory:
    """`one` with its reward on its last step."""
    return replace(one, steps=(*one.steps[:-1], replace(one.steps[-1], reward=one.reward)))


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda model: model.__name__)
def test_an_algorithm_says_whether_it_needs_a_spread_within_groups(algorithm) -> None:
    alone = [[rewarded(trajectory("a", 1.0, group="g"))], [rewarded(trajectory("b", 0.0, group="h"))]]
    outputs = {
        (t.uid, step.step_index): PolicyOutputs(*[(0.0,) * len(step.response_ids)] * 4)
        for (t,) in alone
        for step in t.steps
    }
    named = algorithm().name
    greedy = {"g": 0.5, "h": 0.5} if algorithm.greedy_baseline else None
    if named == "distill":  # by the teacher, not by rewards
        outputs = {place: replace(one, reference=[-1.0] * len(one.log_probs)) for place, one in outputs.items()}
    batch = make_batch(alone, algorithm(), failed="mask", outputs=outputs, greedy=greedy, keep_zero=True)
    teaches = any(value for turn in batch.turns for value in turn.advantages)
    assert teaches is not algorithm.needs_spread


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda model: model.__name__)
def test_a_group_of_one_and_a_group_of_none_are_counted_and_break_nothing(algorithm) -> None:
    alone = [trajectory("only", 1.0, group="h")]
    outputs = {
        (t.uid, step.step_index): PolicyOutputs(*[(0.0,) * len(step.response_ids)] * 4)
        for t in [*LONG, *alone]
        for step in t.steps
    }
    batch = batch_of(
        LONG,
        alone,
        [],
        algorithm=algorithm(),
        aggregation="trajectory_turn_token",
        keep_zero=True,
        outputs=outputs,
    )
    assert batch.counts["groups"] == 3 and batch.counts["empty_groups"] == 1
    assert sum(shares(batch)) == pytest.approx(1.0)
    assert all(math.isfinite(value) for turn in batch.turns for value in turn.advantages)
    if algorithm.needs_spread and algorithm().name not in WHITENED:
        # It has nobody to be compared with.
        assert [turn.advantages for turn in batch.turns if turn.group == "h"] == [(0.0, 0.0)]
        assert batch.counts["zero_variance_groups"] >= 1


def test_a_turn_keeps_the_version_that_sampled_it_and_leaves_no_gap_when_it_is_too_old() -> None:
    old, new = trajectory("A", 1.0), trajectory("B", 0.0)
    aged = replace(old, steps=tuple(replace(step, policy_version=4) for step in old.steps))
    fresh = replace(new, steps=tuple(replace(step, policy_version=6) for step in new.steps))
    batch = batch_of([aged, fresh])
    assert [turn.version for turn in batch.turns] == [4, 6]
    assert batch.since(4) == batch
    assert batch.since(5).turns == [batch.turns[1]]  # with the weight it had
    assert batch.since(7).turns == []


@pytest.mark.parametrize("aggregation", ["trajectory_turn_token", "token_mean", "sequence_mean"])
def test_minibatches_are_means_of_their_own_groups_and_together_the_whole(aggregation) -> None:
    groups = [[trajectory(f"{g}-{m}", float(m), (1 + 9 * g, 2), group=str(g)) for m in range(2)] for g in range(3)]
    whole = batch_of(*groups, aggregation=aggregation)
    assert whole.minibatches(1) == [whole]
    parts = whole.minibatches(3)
    assert [sorted({turn.group for turn in part.turns}) for part in parts] == [["0"], ["1"], ["2"]]
    for part in parts:
        assert sum(shares(part)) == pytest.approx(1.0)
    assert [turn.sequence for part in parts for turn in part.turns] == [turn.sequence for turn in whole.turns]


@pytest.mark.parametrize("aggregation", ["sequence_sum", "constant_length"])
def test_where_a_turn_is_a_place_minibatches_weigh_all_tokens_alike(aggregation: str) -> None:
    groups = [[trajectory(f"{g}-{m}", float(m), (1 + 9 * g,), group=str(g)) for m in range(2)] for g in range(2)]
    algorithm = FlowGRPO(std="none", aggregation=aggregation, longest=10)  # type: ignore[arg-type]
    whole = make_batch(groups, algorithm, failed="mask")
    scale = 1 if aggregation == "sequence_sum" else 10
    assert [turn.weight for part in whole.minibatches(2) for turn in part.turns] == pytest.approx([1 / (2 * scale)] * 4)


@pytest.mark.parametrize(("groups", "n", "sizes"), [(5, 4, [1, 1, 2, 1]), (5, 2, [2, 3]), (2, 4, [1, 1])])
def test_minibatches_are_as_many_as_asked_for_and_as_even_as_can_be(groups: int, n: int, sizes: list[int]) -> None:
    made = [[trajectory(f"{g}-{m}", float(m), group=str(g)) for m in range(2)] for g in range(groups)]
    assert [len({turn.group for turn in part.turns}) for part in batch_of(*made).minibatches(n)] == sizes


def test_what_an_algorithm_remembers_outlives_a_step_without_an_attempt() -> None:
    batch = batch_of([CRASHED], algorithm=RoleBaseline(), failed="drop", memory={"planner": 0.4})
    assert batch.turns == [] and batch.memory == {"planner": 0.4}


def test_truncated_trajectories_are_kept_masked_or_dropped() -> None:
    whole, cut, lost = trajectory("A", 1.0), trajectory("B", 0.0), trajectory("C", 0.0)
    steps = tuple(replace(step, finish_reason=FinishReason.LENGTH) for step in cut.steps)
    group = [whole, replace(cut, steps=steps), lost]
    kept = batch_of(group)
    assert len(kept.turns) == 3 and batch_of(group, truncated="keep") == kept
    masked = batch_of(group, truncated="mask")
    assert masked.turns == [kept.turns[0], kept.turns[2]]  # same advantages, same weights
    dropped = batch_of(group, truncated="drop")
    assert [turn.advantages[0] for turn in dropped.turns] == [0.5, -0.5] and sum(shares(dropped)) == pytest.approx(1.0)


def test_steps_that_were_not_sampled_plainly_are_counted_by_cause_and_kept_or_masked() -> None:
    plain, mixed = trajectory("A", 1.0, lengths=(4,)), trajectory("B", 0.0, lengths=(1, 2, 3))
    how = ({"greedy": True}, {"constraint": "lark", "top_p": 0.9}, {})
    steps = tuple(replace(step, metadata={"sampling": one}) for step, one in zip(mixed.steps, how, strict=True))
    group = [plain, replace(mixed, steps=steps)]
    kept, masked = batch_of(group), batch_of(group, altered="mask")
    assert len(kept.turns) == 4 and masked.turns == [kept.turns[0], kept.turns[3]]  # same advantages, same weights
    for batch in (kept, masked):
        assert {name: value for name, value in batch.counts.items() if name.startswith("altered")} == {
            "altered_sampling": 0.3,
            "altered_sampling/greedy": 0.1,
            "altered_sampling/constraint": 0.2,
            "altered_sampling/top_p": 0.2,
        }
    assert batch_of([plain, mixed]).counts["altered_sampling"] == 0.0


def test_a_constrained_step_is_no_altered_one_and_is_scored_under_its_constraint() -> None:
    made, constraint = trajectory("A", 1.0, lengths=(2, 3)), Constraint(kind="regex", grammar="a+")
    steps = (replace(made.steps[0], constraint=constraint), made.steps[1])
    batch = batch_of([replace(made, steps=steps), trajectory("B", 0.0)], altered="mask")
    assert [turn.sequence.constraint for turn in batch.turns] == [constraint, None, None]
    assert batch.counts["altered_sampling"] == 0.0


def test_nothing_to_learn_from_is_an_empty_batch() -> None:
    batch = batch_of([CRASHED], failed="drop")
    assert batch.turns == []
    assert batch.minibatches(2) == []
