"""The evidence for the proofs: a rollout, its calls as recorded at the engines, and the batch made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from midstream.core.types import Status, Trajectory
from midstream.learn.algorithms.base import Algorithm, CorrectionConfig
from midstream.learn.data.batch import LearningBatch, make_batch
from midstream.learn.data.collect import Collected, Group
from midstream.learn.model.learner import Reference
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.policy_outputs import compute_outputs, required_outputs
from midstream.learn.run.setup import TrainingContext
from midstream.learn.run.step import reference_of
from midstream.learn.self_check.checks import Check, is_trained, judged
from midstream.learn.self_check.noise import UNDECIDABLE, Noise, noise_floor, trimmed_rms
from midstream.learn.self_check.plain_model import PlainModel
from midstream.learn.self_check.recording_engine import RecordedCall

OURS = ("policy", "frozen")
"""Engines that run the model in training, with its adapters and without."""
SEQUENCES = 24
"""Sequences that the noise floor is measured with, at most."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A rollout of the policy as it is now, and the batch that was made of it.

    `groups` are the attempts that ended well, `calls` theirs in the same order. `taken[i]` is the call in which turn i
    of the batch was sampled by a role that the config trains; None when there is none. `plain` is the model as the
    policy is, `base` what the model as it was loaded gives what the first attempt of each group said."""

    parts: TrainingContext
    algorithm: Algorithm
    groups: list[list[Trajectory]]
    calls: list[RecordedCall]
    batch: LearningBatch
    taken: list[RecordedCall | None]
    plain: PlainModel
    base: Mapping[TokenSequence, Tensor]
    reference: Reference | None
    noise: Noise
    """Between two passes of the learner."""
    plain_noise: Noise
    """Between such a pass and the plain model, which rounds nothing to the policy's dtype."""

    @property
    def trained(self) -> list[RecordedCall]:
        """Calls by roles that the config trains."""
        return [call for call in self.calls if is_trained(self.parts.config.flow, call.role)]

    @property
    def coefficients(self) -> list[tuple[float, ...]]:
        """By turn of the batch, weight times advantage of each token: what its log-probability is moved by."""
        return [tuple(turn.weight * a for a in turn.advantages) for turn in self.batch.turns]

    def scored(self) -> list[Tensor]:
        """By turn, the log-probabilities that the learner finds, in passes and with gradients as in an update."""
        return self.measured(lambda sequences: score(self.parts.decoder, sequences).log_probs.detach())

    def measured(self, by: Reference) -> list[Tensor]:
        """By turn, what `by` gives its tokens."""
        values = torch.tensor(self.parts.learner.reference_log_probs(by, [turn.sequence for turn in self.batch.turns]))
        return list(values.split([len(turn.sequence.response_ids) for turn in self.batch.turns]))

    def differences(
        self, found: Iterable[tuple[RecordedCall | None, Tensor]], *, loaded: bool = False
    ) -> dict[str, list[np.ndarray]]:
        """By role, what was `found` of calls minus what the plain model says, as the policy is or as it was loaded."""
        by_role: dict[str, list[np.ndarray]] = {}
        for call, own in found:
            if call is not None and (not loaded or call.sequence in self.base):
                plain = self.base[call.sequence] if loaded else self.plain.read(call.sequence).log_probs
                by_role.setdefault(call.role, []).append((own.cpu() - plain.cpu()).double().numpy())
        return by_role


def gather(
    parts: TrainingContext,
    moved: Collected,
    calls: Sequence[RecordedCall],
    start: Mapping[str, Tensor],
    plain: PlainModel,
) -> Evidence:
    """Return the evidence of the rollout `moved`, with the `calls` recorded in it. `start` are the weights before they
    were moved; `plain` is the model as it was loaded, which follows the policy from here on."""
    groups = _rewarded(moved.groups)
    order = {t.uid: place for place, t in enumerate(t for group in groups for t in group)}
    recorded = sorted((c for c in calls if c.request.session in order), key=lambda call: order[call.request.session])
    algorithm, reference = plain_policy_gradient(parts.config.algorithm), reference_of(parts, start)
    outputs = compute_outputs(parts.learner, groups, required_outputs(algorithm), reference)
    batch = make_batch(groups, algorithm, failed="mask", keep_zero=True, greedy=moved.greedy, outputs=outputs)
    trained = [call for call in recorded if is_trained(parts.config.flow, call.role)]
    # The first attempts are enough here: the plain model takes its time.
    first = {group[0].uid for group in groups}
    ours = [call for call in recorded if call.engine in OURS]
    base = {c.sequence: plain.read(c.sequence).log_probs for c in ours if c.request.session in first}
    plain.follow()
    noise = noise_floor(parts.decoder, [turn.sequence for turn in batch.turns], SEQUENCES)
    return Evidence(
        parts=parts,
        algorithm=algorithm,
        groups=groups,
        calls=recorded,
        batch=batch,
        taken=_taken(groups, trained, batch),
        plain=plain,
        base=base,
        reference=reference,
        noise=noise,
        plain_noise=noise.with_rounding(rounding(plain, [call.sequence for call in ours])),
    )


def rounding(plain: PlainModel, sequences: Sequence[TokenSequence], count: int = 12) -> float:
    """The S (see `noise.py`) that the policy's dtype makes in the plain model, on the first `count` sequences."""
    chosen = [] if plain.exact else list(dict.fromkeys(sequences))[:count]
    return trimmed_rms([(plain.rounded(s) - plain.read(s).log_probs).double().cpu().numpy() for s in chosen])


def plain_policy_gradient(algorithm: Algorithm) -> Algorithm:
    """`algorithm` without what is added to the policy loss or scales it: on fresh samples what is left has one
    gradient, whatever the loss."""
    kl = algorithm.kl.model_copy(update={"coef": 0.0})
    return algorithm.model_copy(
        update={"entropy_coef": 0.0, "top_entropy": 1.0, "correction": CorrectionConfig(level="none"), "kl": kl}
    )


def _rewarded(groups: Sequence[Group]) -> list[Group]:
    """The attempts that ended well, with rewards that differ, so that all of them teach something."""
    found: list[Group] = []
    for place, group in enumerate(groups):
        completed = [t for t in group if t.status is Status.COMPLETED and t.steps]
        found.append([_with_reward(t, float((place + number + 1) ** 2)) for number, t in enumerate(completed)])
    return [group for group in found if group]


def _with_reward(trajectory: Trajectory, reward: float) -> Trajectory:
    steps = [replace(step, reward=0.0) for step in trajectory.steps]
    steps[-1] = replace(steps[-1], reward=reward)
    return replace(trajectory, steps=tuple(steps), rewards={"made up": reward}, reward=reward)


def judged_by_role(name: str, by_role: Mapping[str, list[np.ndarray]], noise: Noise, meaning: str) -> Check:
    """The check of the role, or of all together, whose differences of log-probabilities are largest beside their limit;
    decided where all together are."""
    whole = [difference for own in by_role.values() for difference in own]
    value, limit = max((noise.judge(own) for own in (whole, *by_role.values())), key=lambda one: one[0] / one[1])
    check, finds = judged(name, value, limit, meaning), noise.finds(len(whole))
    return replace(check, finds=finds, decided=not check.ok or finds <= UNDECIDABLE)


def _taken(
    groups: Sequence[Sequence[Trajectory]], calls: Sequence[RecordedCall], batch: LearningBatch
) -> list[RecordedCall | None]:
    """For each turn of `batch`, one of `calls` in which its group sampled these tokens after these; each call once."""
    group_of = {t.uid: t.prompt_uid for group in groups for t in group}
    waiting: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[RecordedCall]] = {}
    for call in calls:
        key = (group_of[call.request.session], call.request.prompt_ids, call.completion.ids)
        waiting.setdefault(key, []).append(call)
    found: list[RecordedCall | None] = []
    for turn in batch.turns:
        left = waiting.get((turn.group, turn.sequence.prompt_ids, turn.sequence.response_ids))
        found.append(left.pop(0) if left else None)
    return found
