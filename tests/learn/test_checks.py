"""The self-checks of the first batch: what is right passes, a planted fault stops the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from midstream.core.errors import TrainingError
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.batch import LearningBatch, LearningTurn, make_batch
from midstream.learn.checks import first_batch, insist
from midstream.learn.config import OptimizerConfig
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence, score
from midstream.learn.weights import Weights


def findings(make_policy, shift: float = 0.0, temperature: float = 1.0) -> dict[str, bool]:
    """What the checks find when the sampler's log-probabilities are off by `shift`, or at another temperature."""
    decoder = make_policy().decoder
    sequences = [TokenSequence((5, 6, 7), (8, 9)), TokenSequence((5, 6, 7), (10, 11, 12))]
    turns: list[LearningTurn] = []
    groups: list[list[Trajectory]] = [[]]
    for number, sequence in enumerate(sequences):
        found = score(decoder, [replace(sequence, temperature=temperature)]).log_probs.detach()
        old = tuple(float(value) + shift for value in found)
        turns.append(LearningTurn(sequence, old, (1.0 - 2 * number,) * len(old), 1 / (2 * len(old)), "planner", "g"))
        step = Step(
            prompt_ids=sequence.prompt_ids,
            response_ids=sequence.response_ids,
            rollout_log_probs=old,
            role="planner",
            trainable=True,
            finish_reason=FinishReason.STOP,
        )
        groups[0].append(Trajectory(uid=str(number), prompt_uid="g", task=Task(id="t", prompt="?"), steps=(step,)))
    counts = make_batch(groups, FlowGRPO(), failed="mask").counts
    batch = LearningBatch(turns, {**counts, "groups": 1.0})
    sums = Learner(decoder, Weights(decoder, "lora"), OptimizerConfig()).update(batch, FlowGRPO(), None)
    checks = first_batch(groups, batch, sums, "float32", None)
    return {check.name: check.ok for check in checks}


def test_what_is_right_passes(make_policy) -> None:
    assert all(findings(make_policy).values())


@pytest.mark.parametrize("fault", [{"shift": 0.01}, {"temperature": 0.7}])
def test_log_probabilities_of_another_policy_are_found(make_policy, fault) -> None:
    found = findings(make_policy, **fault)
    assert not found["sampler and learner agree"] and not found["ratio is 1"]


def test_a_failed_check_stops_the_run_and_says_what_it_means() -> None:
    from midstream.learn.checks import Check

    insist([Check("fine", 0.0, True, "nothing")])
    with pytest.raises(TrainingError, match=r"broken = 0\.5: something is off"):
        insist([Check("fine", 0.0, True, "nothing"), Check("broken", 0.5, False, "something is off")])
