"""The self-checks of the first batch: what is right passes, a planted fault stops the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from midstream.core.errors import TrainingError
from midstream.core.types import Step, Task, Trajectory
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.batch import LearningBatch, make_batch
from midstream.learn.checks import Check, first_batch, insist, is_trained
from midstream.learn.config import OptimizerConfig, TrainConfig
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence, score
from midstream.learn.weights import Weights

CONFIG = TrainConfig.model_validate(
    {
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {"name": "agentflow", "roles": {"verifier": {"train": False}}},
        "rollout": {"group_size": 2},
    }
)


def attempts(decoder: Any) -> list[list[Trajectory]]:
    """A group of two: each plans, and is judged by a role that is not trained."""
    group: list[Trajectory] = []
    for number, said in enumerate(((8, 9), (10, 11, 12))):
        steps: list[Step] = []
        for role, prompt in (("planner", (5, 6, 7)), ("verifier", (5, 6, 7, *said, 13))):
            found = tuple(score(decoder, [TokenSequence(prompt, said)]).log_probs.tolist())
            steps.append(
                Step(
                    prompt_ids=prompt,
                    response_ids=said,
                    rollout_log_probs=found,
                    role=role,
                    trainable=role == "planner",
                )
            )
        task = Task(id="t", prompt="?")
        group.append(Trajectory(uid=str(number), prompt_uid="g", task=task, steps=tuple(steps), reward=float(number)))
    return [group]


def findings(
    decoder: Any, groups: Sequence[Sequence[Trajectory]], batch: LearningBatch | None = None, **facts: Any
) -> dict[str, bool]:
    made = batch or make_batch(groups, FlowGRPO(), failed="mask")
    sums = Learner(decoder, Weights(decoder, "lora"), OptimizerConfig()).accumulate(made, FlowGRPO())
    checks = first_batch(CONFIG, groups, made, sums, **{"dtype": "float32", "version": 0, "kl_at_start": 0.0, **facts})
    return {check.name: check.ok for check in checks}


def bad(found: Mapping[str, bool]) -> set[str]:
    return {name for name, ok in found.items() if not ok}


def changed(groups: Sequence[Sequence[Trajectory]], role: str, **fields: Any) -> list[list[Trajectory]]:
    def step(one: Step) -> Step:
        values = {name: value(one) if callable(value) else value for name, value in fields.items()}
        return replace(one, **values) if one.role == role else one

    return [[replace(t, steps=tuple(step(one) for one in t.steps)) for t in group] for group in groups]


def test_what_is_right_passes(make_policy) -> None:
    decoder = make_policy().decoder
    found = findings(decoder, attempts(decoder))
    assert not bad(found) and {"loss on planner", "loss on verifier", "learned as recorded"} <= found.keys()


@pytest.mark.parametrize(
    "fault",
    [{"rollout_log_probs": lambda step: [value + 0.01 for value in step.rollout_log_probs]}, {"temperature": 0.7}],
)
def test_log_probabilities_of_another_policy_are_found(make_policy, fault: dict[str, Any]) -> None:
    decoder = make_policy().decoder
    assert bad(findings(decoder, changed(attempts(decoder), "planner", **fault))) == {
        "sampler and learner agree",
        "ratio is 1",
    }


def test_loss_on_a_role_that_the_config_does_not_train_is_found(make_policy) -> None:
    decoder = make_policy().decoder
    groups = attempts(decoder)
    trained = changed(groups, "verifier", trainable=True)
    assert bad(findings(decoder, trained)) == {"loss on verifier", "learned as recorded"}
    assert bad(findings(decoder, changed(groups, "planner", trainable=False))) == {"loss on planner"}


def test_a_turn_that_nobody_recorded_is_found(make_policy) -> None:
    decoder = make_policy().decoder
    groups = attempts(decoder)
    batch = make_batch(groups, FlowGRPO(), failed="mask")
    moved = replace(batch.turns[0], sequence=TokenSequence((5, 6), (7, 8)))
    assert "learned as recorded" in bad(findings(decoder, groups, LearningBatch([moved, batch.turns[1]], batch.counts)))


def test_a_stale_policy_a_torn_group_and_another_reference_are_found(make_policy) -> None:
    decoder = make_policy().decoder
    groups = attempts(decoder)
    assert bad(findings(decoder, groups, version=1)) == {"sampled by this policy"}
    assert bad(findings(decoder, [groups[0][:1], groups[0][1:]])) == {"groups are whole"}
    assert bad(findings(decoder, groups, kl_at_start=0.01)) == {"reference KL is 0"}
    assert "reference KL is 0" not in findings(decoder, groups, kl_at_start=None)


def test_a_role_is_trained_as_the_config_says_of_it_or_of_the_policy() -> None:
    def flow(**roles: Any) -> Any:
        return CONFIG.flow.model_validate({"roles": roles})

    assert is_trained(flow(), "planner")
    assert not is_trained(flow(policy={"train": False}), "planner")
    assert is_trained(flow(policy={"train": False}, planner={}), "planner")
    assert not is_trained(flow(planner={"engine": "frozen"}), "planner")


def test_a_failed_check_stops_the_run_and_says_what_it_means() -> None:
    insist([Check("fine", 0.0, True, "nothing")])
    with pytest.raises(TrainingError, match=r"broken = 0\.5: something is off\n.*empty: no value\n.*doctor --training"):
        insist(
            [
                Check("fine", 0.0, True, "nothing"),
                Check("broken", 0.5, False, "something is off"),
                Check("empty", None, False, "no value"),
            ]
        )
