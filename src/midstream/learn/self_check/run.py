"""`midstream doctor --training`: builds the components of a run, makes two short rollouts, learns from them under
checks, and discards everything. Writes only to temporary folders, and a model that is not cached yet to the cache.

The first rollout uses the policy as the run starts, and gets the checks of the first training step. Before the second,
all weights are moved a little: new adapters have no effect, which would hide their faults."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midstream.agents.endpoint import AgentEndpoint
from midstream.core.blocking import run_blocking
from midstream.core.seeds import derive_seed
from midstream.core.types import Status, Trajectory
from midstream.engines.torch.compute import compute
from midstream.learn.algorithms.role_credit import SharedCredit
from midstream.learn.config import TrainConfig
from midstream.learn.data.batch import make_batch
from midstream.learn.data.collect import Collected, attempt_tasks
from midstream.learn.losses.mismatch import OwnLogProbs, correction_for
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.model.policy_outputs import compute_outputs, required_outputs
from midstream.learn.run.setup import TrainingContext, build, check_trained_roles
from midstream.learn.run.step import reference_of
from midstream.learn.self_check.checks import Check, first_batch
from midstream.learn.self_check.evidence import SEQUENCES, gather, judged_by_role, rounding
from midstream.learn.self_check.noise import noise_floor
from midstream.learn.self_check.plain_model import PlainModel
from midstream.learn.self_check.proofs import prove, same_scale
from midstream.learn.self_check.recording_engine import RecordedCall, recorded_calls
from midstream.learn.self_check.rehearsal import rehearsal
from midstream.rewards.summary import failure_reasons
from midstream.tasks.curriculum import Progress

TASKS, ATTEMPTS = 2, 4
"""Tasks per rollout, and attempts at each (fewer if the config's groups are smaller)."""
STEPS = 16
"""Steps of the first rollout that are compared with the plain model."""
NUDGE = 0.05
"""Size of the move of a weight, as a share of its tensor's root mean square."""
NUDGE_ZEROS = 0.02
"""Size of the move where all weights of a tensor are 0."""


def self_check(
    config: TrainConfig | None = None,
    overrides: Sequence[str] = (),
    on_check: Callable[[Check], None] = lambda check: None,
    endpoint: AgentEndpoint | None = None,
) -> list[Check]:
    """Check the training path of `config`, or of a small built-in run with `overrides`. `on_check` is called with each
    finding as it is made; `endpoint` accepts the calls of black-box agents. Raises `UserError` where the run could not
    begin."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = rehearsal(Path(folder), overrides) if config is None else config
        sampled = chosen.rollout.model_copy(
            update={"tasks_per_step": TASKS, "group_size": min(ATTEMPTS, chosen.rollout.group_size), "backfill": 0}
        )
        changed: dict[str, Any] = {"rollout": sampled}
        if chosen.algorithm.role_credit.reruns:
            # Nothing in a re-run is trained on, so its calls are not examined.
            changed["algorithm"] = chosen.algorithm.model_copy(update={"role_credit": SharedCredit()})
        return run_blocking(_examine(chosen.model_copy(update=changed), on_check, endpoint))


async def _examine(
    config: TrainConfig, on_check: Callable[[Check], None], endpoint: AgentEndpoint | None
) -> list[Check]:
    checks: list[Check] = []

    def note(found: Iterable[Check]) -> None:
        for check in found:
            checks.append(check)
            on_check(check)

    parts = await compute(build, config, None, endpoint)
    check_trained_roles(parts)
    note([Check("numerics", None, True, parts.numerics.summary())])
    if config.policy.remote:
        note([Check("sampler", None, True, "this process: the servers of policy.engine are checked as the run begins")])
    begun = await attempt_tasks(parts, None, Progress(0), 1, TASKS)
    note([attempts_end_well(begun.trajectories)])
    if not checks[-1].ok:
        return checks
    start = parts.weights.snapshot()
    plain = await compute(PlainModel, parts.model_path, parts.weights)
    note(await compute(_as_training_begins, parts, begun, start, plain))
    await compute(_nudge, parts, start)
    calls: list[RecordedCall] = []
    moved = await attempt_tasks(
        replace(parts, role_engines=recorded_calls(parts.role_engines, calls)), None, Progress(TASKS), 2, TASKS
    )
    again = attempts_end_well(moved.trajectories)
    if again.ok:
        evidence = await compute(gather, parts, moved, calls, start, plain)
        await compute(note, prove(evidence))
    else:
        note([again])
    return checks


def attempts_end_well(trajectories: Sequence[Trajectory]) -> Check:
    share = sum(t.status is Status.COMPLETED for t in trajectories) / len(trajectories)
    why = "".join(f"; {one['count']} did not: {one['reason']}" for one in failure_reasons(trajectories)[:1])
    return Check("attempts end well", share, share > 0, f"share of attempts that did; others carry no loss{why}")


def _as_training_begins(
    parts: TrainingContext, begun: Collected, start: Mapping[str, Tensor], plain: PlainModel
) -> list[Check]:
    """Make the checks of the first training step, also on attempts whose rewards are equal."""
    config = parts.config
    correction = correction_for(config.algorithm, correcting=False)
    algorithm = config.algorithm.model_copy(update={"correction": correction})
    reference = reference_of(parts, start)
    outputs = compute_outputs(parts.learner, begun.groups, required_outputs(algorithm), reference)
    batch = make_batch(begun.groups, algorithm, failed="mask", keep_zero=True, greedy=begun.greedy, outputs=outputs)
    own = OwnLogProbs()
    sums = parts.learner.accumulate(batch, algorithm, reference, own.record)
    parts.weights.zero_grad()
    noise = noise_floor(parts.decoder, [turn.sequence for turn in batch.turns], SEQUENCES)
    kl = sums["kl"] / (sums["weight"] or 1.0) if "kl" in sums else None
    checks = first_batch(
        config, begun.groups, batch, own=own, noise=noise, version=parts.decoder.version, kl_at_start=kl
    )
    # A few attempts of every task are enough, because the plain model is slow.
    attempts = [attempt for some in zip_longest(*begun.groups) for attempt in some if attempt is not None]
    steps = [step for attempt in attempts for step in attempt.steps if step.rollout_log_probs][:STEPS]
    sequences = [TokenSequence.of(step) for step in steps]
    differences: list[np.ndarray] = []
    by_role: dict[str, list[np.ndarray]] = {}
    for step, sequence in zip(steps, sequences, strict=True):
        read_plainly = plain.read(sequence).log_probs.double().cpu().numpy()
        differences.append(np.array(step.rollout_log_probs) - read_plainly)
        by_role.setdefault(step.role, []).append(differences[-1])
    noise = noise.with_rounding(rounding(plain, sequences))
    meaning = "log-probabilities of some attempts against transformers' model, as loaded (RMS, worst role)"
    return [
        *checks,
        judged_by_role("policy starts as its model", by_role, noise, meaning),
        same_scale("scale of logits at start", plain, sequences, differences, noise),
    ]


def _nudge(parts: TrainingContext, start: Mapping[str, Tensor]) -> None:
    """Move every weight a little, by seeded noise."""
    generator = torch.Generator().manual_seed(derive_seed(parts.config.trainer.seed, "nudge") % 2**63)
    moved: dict[str, Tensor] = {}
    for name, value in start.items():
        far = NUDGE * float(value.float().square().mean().sqrt()) or NUDGE_ZEROS
        noise = torch.randn(value.shape, generator=generator).to(value.device)
        moved[name] = (value + far * noise).to(value.dtype)
    parts.weights.restore(moved)
