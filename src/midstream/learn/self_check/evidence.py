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
"""Names of the engines for the model in training, with its adapters and without."""
SEQUENCES = 24
"""Maximum number of sequences that the noise floor is measured with."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A rollout of the policy as it is now, and the batch that was made of it.

    `groups` holds the completed attempts, `calls` their calls in the same order. `taken[i]` is the call by a trained
    role that sampled turn i of the batch; None if there is none. `plain` has the policy's weights. `base` holds the
    log-probabilities by the model as loaded, for the calls of each group's first attempt."""

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
        """Return the calls by trained roles."""
        return [call for call in self.calls if is_trained(self.parts.config.flow, call.role)]

    @property
    def coefficients(self) -> list[tuple[float, ...]]:
        """Return weight times advantage of each token by turn: the coefficient of its log-probability in the loss."""
        return [tuple(turn.weight * a for a in turn.advantages) for turn in self.batch.turns]

    def scored(self) -> list[Tensor]:
        """Return the learner's log-probabilities by turn, in passes and with gradients as in an update."""
        return self.measured(lambda sequences: score(self.parts.decoder, sequences).log_probs.detach())

    def measured(self, by: Reference) -> list[Tensor]:
        """Return the log-probabilities of `by`, by turn."""
        values = torch.tensor(self.parts.learner.reference_log_probs(by, [turn.sequence for turn in self.batch.turns]))
        return list(values.split([len(turn.sequence.response_ids) for turn in self.batch.turns]))

    def differences(
        self, found: Iterable[tuple[RecordedCall | None, Tensor]], *, loaded: bool = False
    ) -> dict[str, list[np.ndarray]]:
        """Return the log-probabilities `found` for calls minus the plain model's, by role; with `loaded`, minus those
        of the model as loaded."""
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
    """Return the evidence of the rollout `moved` with its recorded `calls`. `start` holds the weights before they were
    moved. `plain` is the model as loaded; it gets the policy's weights here."""
    groups = _rewarded(moved.groups)
    order = {t.uid: place for place, t in enumerate(t for group in groups for t in group)}
    recorded = sorted((c for c in calls if c.request.session in order), key=lambda call: order[call.request.session])
    algorithm, reference = plain_policy_gradient(parts.config.algorithm), reference_of(parts, start)
    outputs = compute_outputs(parts.learner, groups, required_outputs(algorithm), reference)
    batch = make_batch(groups, algorithm, failed="mask", keep_zero=True, greedy=moved.greedy, outputs=outputs)
    trained = [call for call in recorded if is_trained(parts.config.flow, call.role)]
    # The first attempts are enough, because the plain model is slow.
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
    """Return S (see `noise.py`) of the rounding by the policy's dtype in the plain model, on the first `count`
    sequences."""
    chosen = [] if plain.exact else list(dict.fromkeys(sequences))[:count]
    return trimmed_rms([(plain.rounded(s) - plain.read(s).log_probs).double().cpu().numpy() for s in chosen])


def plain_policy_gradient(algorithm: Algorithm) -> Algorithm:
    """Return `algorithm` without terms that are added to the policy loss or scale it. On fresh samples all losses then
    have the same gradient."""
    kl = algorithm.kl.model_copy(update={"coef": 0.0})
    return algorithm.model_copy(
        update={"entropy_coef": 0.0, "top_entropy": 1.0, "correction": CorrectionConfig(level="none"), "kl": kl}
    )


def _rewarded(groups: Sequence[Group]) -> list[Group]:
    """Return the completed attempts with different rewards, so that each has an advantage."""
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
    """Return the check of the role, or of all roles together, whose differences are largest relative to their limit. It
    is decided if that of all roles together is."""
    whole = [difference for own in by_role.values() for difference in own]
    value, limit = max((noise.judge(own) for own in (whole, *by_role.values())), key=lambda one: one[0] / one[1])
    check, finds = judged(name, value, limit, meaning), noise.finds(len(whole))
    return replace(check, finds=finds, decided=not check.ok or finds <= UNDECIDABLE)


def _taken(
    groups: Sequence[Sequence[Trajectory]], calls: Sequence[RecordedCall], batch: LearningBatch
) -> list[RecordedCall | None]:
    """Return the call that sampled each turn of `batch`: same group, prompt and response; each call is used once."""
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
