"""The self-checks of the first batch: what is right passes, a planted fault stops the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.row_dependent import row_dependent_products

from midstream.core.errors import TrainingError
from midstream.core.types import Step, Task, Trajectory
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.config import OptimizerConfig, TrainConfig
from midstream.learn.data.batch import LearningBatch, make_batch
from midstream.learn.losses.mismatch import OwnLogProbs
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.weights import Weights
from midstream.learn.self_check import noise as noise_module
from midstream.learn.self_check.checks import Check, first_batch, insist, is_trained
from midstream.learn.self_check.noise import UNDECIDABLE, noise_floor

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
    for number, response_ids in enumerate(((8, 9), (10, 11, 12))):
        steps: list[Step] = []
        for role, prompt in (("planner", (5, 6, 7)), ("verifier", (5, 6, 7, *response_ids, 13))):
            found = tuple(score(decoder, [TokenSequence(prompt, response_ids)]).log_probs.tolist())
            steps.append(
                Step(
                    prompt_ids=prompt,
                    response_ids=response_ids,
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
    return {check.name: check.ok for check in checked(decoder, groups, batch, **facts)}


def checked(
    decoder: Any, groups: Sequence[Sequence[Trajectory]], batch: LearningBatch | None = None, **facts: Any
) -> list[Check]:
    made = batch or make_batch(groups, FlowGRPO(), failed="mask")
    own = OwnLogProbs()
    Learner(decoder, Weights(decoder, "lora"), OptimizerConfig()).accumulate(made, FlowGRPO(), None, own.record)
    noise = noise_floor(decoder, [turn.sequence for turn in made.turns])
    return first_batch(CONFIG, groups, made, own=own, **{"noise": noise, "version": 0, "kl_at_start": 0.0, **facts})


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


def off_by(size: float) -> dict[str, Any]:
    return {"rollout_log_probs": lambda step: [value + size for value in step.rollout_log_probs]}


def test_log_probabilities_of_another_policy_are_found(make_policy) -> None:
    decoder = make_policy().decoder
    assert bad(findings(decoder, changed(attempts(decoder), "planner", **off_by(0.01)))) == {
        "sampler and learner agree",
        "ratio is 1",
    }


@pytest.mark.parametrize("noise", [0.0, 0.002])
def test_another_temperature_is_found_whatever_the_noise(make_policy, noise: float) -> None:
    decoder = make_policy().decoder
    with row_dependent_products(noise):
        groups = many_attempts(decoder)
        assert not bad(findings(decoder, groups))
        assert "temperatures agree" in bad(findings(decoder, changed(groups, "planner", temperature=0.7)))


def many_attempts(decoder: Any) -> list[list[Trajectory]]:
    """A group of sixteen that plan in eight tokens each."""
    generator = np.random.Generator(np.random.PCG64(0))
    task = Task(id="t", prompt="?")
    group: list[Trajectory] = []
    for number in range(16):
        prompt, response_ids = (5, 6, 7, number), tuple(generator.integers(8, 400, 8).tolist())
        found = tuple(score(decoder, [TokenSequence(prompt, response_ids)]).log_probs.tolist())
        step = Step(
            prompt_ids=prompt, response_ids=response_ids, rollout_log_probs=found, role="planner", trainable=True
        )
        group.append(Trajectory(uid=str(number), prompt_uid="g", task=task, steps=(step,), reward=float(number % 2)))
    return [group[:2], group[2:4], *([group[n], group[n + 1]] for n in range(4, 16, 2))]


def test_one_token_of_many_never_stops_a_run(make_policy) -> None:
    decoder = make_policy().decoder
    groups = many_attempts(decoder)
    first = groups[0][0]
    (step,) = first.steps
    assert step.rollout_log_probs is not None
    odd = replace(step, rollout_log_probs=(step.rollout_log_probs[0] + 0.01, *step.rollout_log_probs[1:]))
    found = bad(findings(decoder, [[replace(first, steps=(odd,)), groups[0][1]], *groups[1:]]))
    assert "sampler and learner agree" not in found and not found - {"ratio is 1"}


def test_a_model_that_drops_out_does_not_hide_behind_its_own_noise(make_policy, monkeypatch) -> None:
    decoder = make_policy().decoder
    groups = attempts(decoder)
    forward = type(decoder).forward
    monkeypatch.setattr(
        type(decoder), "forward", lambda *given, **named: torch.nn.functional.dropout(forward(*given, **named), 0.1)
    )
    assert {"nothing is random", "sampler and learner agree"} <= bad(findings(decoder, groups))


def test_a_model_that_looks_ahead_is_found(make_policy) -> None:
    decoder = make_policy().decoder
    noise = replace(noise_floor(decoder, [TokenSequence((5, 6), (7, 8))]), rms=1.5)
    assert "noise floor" in bad(findings(decoder, attempts(decoder), noise=noise))


def test_the_noise_of_long_prompts_is_measured_with_their_ends(make_policy, monkeypatch) -> None:
    decoder = make_policy().decoder
    computed: list[int] = []
    forward = type(decoder).forward

    def counted(decoder, tokens, *others, **named):
        computed.append(len(tokens))
        return forward(decoder, tokens, *others, **named)

    monkeypatch.setattr(type(decoder), "forward", counted)
    monkeypatch.setattr(noise_module, "LONGEST", 64)
    with row_dependent_products(0.005):
        found = noise_floor(decoder, [TokenSequence(tuple(range(5, 249)), tuple(range(12)))])
    assert max(computed) <= 256 and min(computed) == 64
    assert found.rms > 0 and found.trusted == pytest.approx(2 * found.rms)


def test_a_check_says_what_it_can_see_and_when_that_is_too_little(make_policy) -> None:
    decoder = make_policy().decoder
    loud = replace(noise_floor(decoder, [TokenSequence((5, 6), (7, 8))]), rms=0.2, typical=0.2)
    found = {check.name: check for check in checked(decoder, attempts(decoder), noise=loud)}
    agree = found["sampler and learner agree"]
    assert agree.ok and not agree.decided and agree.finds is not None and agree.finds > UNDECIDABLE
    assert found["learned as recorded"].decided


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
