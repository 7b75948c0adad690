"""One training step: builds a learning batch from sampled groups, updates the policy and reports metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from midstream.engines.torch.compute import compute
from midstream.engines.torch.memory import trim
from midstream.learn.algorithms.base import Algorithm, KLConfig
from midstream.learn.algorithms.normalise import normalise_rewards
from midstream.learn.algorithms.penalty import penalise_rewards
from midstream.learn.data.batch import LearningBatch, finite_reward, is_scored, make_batch
from midstream.learn.data.collect import Group
from midstream.learn.losses.correction import keep_high_entropy
from midstream.learn.losses.mismatch import OwnLogProbs, correction_for, corrects_next, importance_metrics
from midstream.learn.model.learner import Reference
from midstream.learn.model.policy_outputs import compute_outputs, required_outputs
from midstream.learn.model.reference import swapped_reference
from midstream.learn.run.checkpoint import TrainState
from midstream.learn.run.producer import SampledBatch
from midstream.learn.run.setup import TrainingContext
from midstream.learn.run.step_metrics import attempt_metrics, explain_correction, learned_metrics, measured_mismatch

_log = logging.getLogger(__name__)

TRIM_EVERY = 4
"""Training steps between releases of unused memory. Releasing costs a little time, because the memory is soon allocated
again."""

FirstUpdate = Callable[[Sequence[Group], LearningBatch, Mapping[str, float], OwnLogProbs], None]
"""Called after the first update of a run with the groups and batch it learned from, its metrics, and the learner's
log-probabilities before it."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """State of the run after a training step, and the step's row of metrics."""

    state: TrainState
    row: dict[str, Any]


async def update_policy(
    context: TrainingContext,
    sampled: SampledBatch,
    state: TrainState,
    start: Mapping[str, Tensor],
    on_first_update: FirstUpdate,
) -> StepResult:
    """Update the policy from `sampled`, the batch of the training step after `state`.

    `start` holds the weights at the start of reinforcement learning, for `kl.reference: start`.
    """
    config, engine, learner, collected = context.config, context.engine, context.learner, sampled.collected
    step, began = sampled.step, time.perf_counter()
    coef = config.algorithm.kl.coef if state.kl_coef is None else state.kl_coef
    kl = config.algorithm.kl.model_copy(update={"coef": coef})
    correction = correction_for(config.algorithm, state.correcting)
    algorithm = config.algorithm.model_copy(update={"kl": kl, "correction": correction})
    rollout = config.rollout
    is_counted = partial(is_scored, failed=rollout.failed, truncated=rollout.truncated)
    rewards = state.rewards.updated(finite_reward(t) for t in collected.trajectories if is_counted(t))
    groups, greedy = normalise_rewards(collected.groups, collected.greedy, config.reward.normalize, is_counted, rewards)
    drift = None
    reference = reference_of(context, start)
    # Sampling from the same weights pauses: the reference may swap them, and updates change them.
    async with engine.exclusive() if context.shares_weights else nullcontext():
        outputs = await compute(compute_outputs, learner, groups, required_outputs(algorithm), reference)
        if kl.placement == "reward" and kl.coef:
            groups, drift = penalise_rewards(groups, outputs, kl.coef)
        batch = make_batch(
            groups,
            algorithm,
            failed=rollout.failed,
            truncated=rollout.truncated,
            altered=rollout.altered_sampling,
            greedy=greedy,
            outputs=outputs,
            memory=state.memory,
            keep_zero=bool((kl.coef and kl.placement == "loss") or algorithm.entropy_coef or learner.critic),
        )
        batch = keep_high_entropy(batch, outputs, algorithm.top_entropy)
        kl_reference = reference if drift is None and _is_measured(context, kl, step) else None
        start_version = context.decoder.version
        updates, own, stale = await _make_updates(context, batch, groups, algorithm, kl_reference, on_first_update)
        if step % TRIM_EVERY == 0:
            await compute(trim)
    learned = learned_metrics(updates)
    if drift is not None:
        learned["kl"] = drift
    if learned["kl"] is not None and kl.target is not None:
        coef = kl.adapted_coef(coef, learned["kl"], len(collected.trajectories))
    mismatch_metrics = measured_mismatch(own, start_version, algorithm.loss)
    correcting = corrects_next(state.correcting, mismatch_metrics.get("mismatch/clipped"), config.algorithm.correction)
    if correcting != state.correcting:
        explanation = explain_correction(mismatch_metrics, config.algorithm.correction, correcting)
        _log.warning("step %d: %s", step, explanation)
    row = {
        "stage": "rl",
        "step": step,
        **attempt_metrics(context, collected.trajectories),
        **learned,
        **(importance_metrics(own.differences(), correction) if correction.level != "none" else {}),
        **mismatch_metrics,
        "corrected": float(correction.level != "none"),
        "kl_coef": kl.coef,
        **batch.counts,
        **collected.counts,
        **({} if rollout.max_staleness is None else {"stale_turns": float(stale)}),
        **({"versions_behind": float(start_version - sampled.version)} if rollout.steps_ahead else {}),
        "tokens": sampled.tokens,
        "prefilled_tokens": sampled.prefilled_tokens,
        "policy_version": context.decoder.version,
        "tokens_per_s": sampled.tokens / sampled.rollout_s,
        "rollout_s": sampled.rollout_s,
        "learn_s": time.perf_counter() - began,
    }
    new_state = TrainState(
        step,
        collected.progress.position,
        learner.updates,
        context.decoder.version,
        kl_coef=coef if kl.target is not None else state.kl_coef,
        seen=collected.progress.seen,
        memory=batch.memory,
        rewards=rewards,
        replay=collected.replay,
        correcting=correcting,
    )
    return StepResult(new_state, row)


async def _make_updates(
    context: TrainingContext,
    batch: LearningBatch,
    groups: Sequence[Group],
    algorithm: Algorithm,
    reference: Reference | None,
    on_first_update: FirstUpdate,
) -> tuple[list[dict[str, float]], OwnLogProbs, int]:
    """Make all updates of a training step. Returns their metrics, the learner's log-probabilities at the start of the
    step, and the number of turns that were too old to learn from."""
    trainer, learner, decoder = context.config.trainer, context.learner, context.decoder
    max_staleness, correction = context.config.rollout.max_staleness, algorithm.correction
    corrects = correction.level != "none"
    updates: list[dict[str, float]] = []
    own, stale = OwnLogProbs(), 0
    if corrects and trainer.minibatches > 1:
        # Computed now, because the first update changes the weights.
        for minibatch in batch.minibatches(trainer.minibatches):
            await compute(learner.own_log_probs, minibatch.turns, own.record)
    for _ in range(trainer.epochs_per_batch):
        for minibatch in batch.minibatches(trainer.minibatches):
            turns = len(minibatch.turns)
            if max_staleness is not None:
                minibatch = minibatch.since(decoder.version - max_staleness)
            stale += turns - len(minibatch.turns)
            if not minibatch.turns:
                continue
            known = corrects and minibatch in own
            corrected = own.correct(minibatch, correction) if known else minibatch
            observe = own.record if not updates and not known else None
            anchor = corrects and not known
            updates.append(await compute(learner.update, corrected, algorithm, reference, observe, anchor=anchor))
            if learner.updates == 1:
                await compute(on_first_update, groups, minibatch, updates[0], own)
    return updates, own, stale


def _is_measured(context: TrainingContext, kl: KLConfig, step: int) -> bool:
    """Return whether this training step measures the distance to the reference.

    Always with a KL coefficient above 0; otherwise every `measure_every` steps and before the first update, for the
    self-checks.
    """
    if kl.coef > 0:
        return True
    return kl.measure_every > 0 and (step % kl.measure_every == 0 or context.learner.updates == 0)


def reference_of(context: TrainingContext, start: Mapping[str, Tensor]) -> Reference | None:
    """Return the reference policy of `kl.reference`. `start` holds the weights at the start of reinforcement
    learning."""
    if context.config.algorithm.kl.reference == "start":
        return swapped_reference(context.decoder, context.weights, start)
    return context.reference
