"""What models say of a step's turns before there are advantages: the policy itself, its reference, its critic."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.core.types import Trajectory
from midstream.learn.algorithms.base import Algorithm, Reads
from midstream.learn.algorithms.outcome import PolicyOutputs, TurnKey
from midstream.learn.batch import trainable_steps
from midstream.learn.learner import Learner, Reference
from midstream.learn.log_probs import TokenSequence


def wanted(algorithm: Algorithm) -> frozenset[Reads]:
    """What has to be read for `algorithm` as it is configured."""
    reads = set(algorithm.reads)
    if algorithm.top_entropy < 1:
        reads.add("policy")
    if algorithm.kl.placement == "reward" and algorithm.kl.coef:
        reads.add("reference")
    return frozenset(reads)


def read(
    learner: Learner, groups: Sequence[Sequence[Trajectory]], what: frozenset[Reads], reference: Reference | None
) -> dict[TurnKey, PolicyOutputs]:
    """Every trainable step of `groups`, read in passes as an update makes them. Empty when nothing is
    wanted."""
    steps = {
        (trajectory.uid, step.step_index): step
        for group in groups
        for trajectory in group
        for step in trainable_steps(trajectory)
    }
    if not what or not steps:
        return {}
    sequences = [TokenSequence(s.prompt_ids, s.response_ids, s.temperature) for s in steps.values()]
    roles = [step.role for step in steps.values()] if "values" in what else None
    seen = learner.look(sequences, roles) if what & {"policy", "values"} else PolicyOutputs()
    other = learner.measure(reference, sequences) if "reference" in what and reference is not None else ()
    found: dict[TurnKey, PolicyOutputs] = {}
    start = 0
    for place, step in steps.items():
        part = slice(start, start := start + len(step.response_ids))
        found[place] = PolicyOutputs(seen.log_probs[part], seen.entropy[part], other[part], seen.values[part])
    return found
