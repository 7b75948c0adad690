"""Computes the model outputs that algorithms need before advantages: log-probabilities and entropy of the policy,
log-probabilities of the reference, values of the critic."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.core.types import Trajectory
from midstream.learn.algorithms.base import Algorithm, OutputKind
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.data.batch import trainable_steps
from midstream.learn.model.learner import Learner, Reference
from midstream.learn.model.log_probs import TokenSequence


def required_outputs(algorithm: Algorithm) -> frozenset[OutputKind]:
    """Return the outputs that `algorithm` needs under its config."""
    required = set(algorithm.required_outputs)
    if algorithm.top_entropy < 1:
        required.add("policy")
    if algorithm.kl.placement == "reward" and algorithm.kl.coef:
        required.add("reference")
    return frozenset(required)


def compute_outputs(
    learner: Learner,
    groups: Sequence[Sequence[Trajectory]],
    required: frozenset[OutputKind],
    reference: Reference | None,
) -> dict[TurnKey, PolicyOutputs]:
    """Compute outputs for all trainable steps of `groups`, in the same kind of passes as an update. Empty when nothing
    is required."""
    steps = {
        (trajectory.uid, step.step_index): step
        for group in groups
        for trajectory in group
        for step in trainable_steps(trajectory)
    }
    if not required or not steps:
        return {}
    sequences = [TokenSequence.of(step) for step in steps.values()]
    roles = [step.role for step in steps.values()] if "values" in required else None
    policy = learner.policy_outputs(sequences, roles) if required & {"policy", "values"} else PolicyOutputs()
    reference_log_probs = (
        learner.reference_log_probs(reference, sequences) if "reference" in required and reference is not None else ()
    )
    outputs: dict[TurnKey, PolicyOutputs] = {}
    start = 0
    for key, step in steps.items():
        tokens = slice(start, start := start + len(step.response_ids))
        outputs[key] = PolicyOutputs(
            policy.log_probs[tokens], policy.entropy[tokens], reference_log_probs[tokens], policy.values[tokens]
        )
    return outputs
