"""One training step: collects attempts, builds a batch, updates the policy and reports metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from midstream.core.types import Trajectory
from midstream.engines.torch.compute import compute
from midstream.engines.torch.memory import trim
from midstream.learn.algorithms.base import CorrectionConfig, KLConfig
from midstream.learn.algorithms.normalise import normalise_rewards
from midstream.learn.algorithms.penalty import penalise_rewards
from midstream.learn.data.batch import LearningBatch, check_log_probs, finite_reward, is_scored, make_batch
from midstream.learn.data.collect import Group, collect
from midstream.learn.data.source import GroupSource
from midstream.learn.losses.base import PolicyLoss
from midstream.learn.losses.correction import keep_high_entropy
from midstream.learn.losses.mismatch import OwnLogProbs, correction_for, corrects_next, importance_metrics, mismatch
from midstream.learn.model.learner import Reference, merge_metrics
from midstream.learn.model.policy_outputs import compute_outputs, required_outputs
from midstream.learn.model.reference import swapped_reference
from midstream.learn.run.checkpoint import TrainState
from midstream.learn.run.failures import check_failures
from midstream.learn.run.setup import TrainingContext
from midstream.record.store import Store
from midstream.rewards.judge import judge_agreement
from midstream.rewards.summary import describe, failure_reasons

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


async def take_step(
    context: TrainingContext,
    store: Store,
    state: TrainState,
    start: Mapping[str, Tensor],
    on_first_update: FirstUpdate,
    source: GroupSource | None = None,
) -> StepResult:
    """Make the training step after `state`.

    `start` holds the weights at the start of reinforcement learning, for `kl.reference: start`. `source` provides
    groups recorded elsewhere; without one, groups are sampled here.
    """
    config, engine, learner = context.config, context.engine, context.learner
    step, began = state.step + 1, time.perf_counter()
    sampled, prefilled = engine.tokens_sampled, engine.tokens_prefilled
    collected = await collect(context, store, state, step, source)
    check_failures(collected.trajectories, config.rollout.max_failed, first=state.step == 0)
    rollout_s = time.perf_counter() - began
    check_log_probs(collected.trajectories)
    coef = config.algorithm.kl.coef if state.kl_coef is None else state.kl_coef
    kl = config.algorithm.kl.model_copy(update={"coef": coef})
    correction = correction_for(config.algorithm, state.correcting)
    algorithm = config.algorithm.model_copy(update={"kl": kl, "correction": correction})
    rollout = config.rollout
    is_counted = partial(is_scored, failed=rollout.failed, truncated=rollout.truncated)
    rewards = state.rewards.updated(finite_reward(t) for t in collected.trajectories if is_counted(t))
    groups, greedy = normalise_rewards(collected.groups, collected.greedy, config.reward.normalize, is_counted, rewards)
    drift, stale = None, 0
    reference = reference_of(context, start)
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
    updates: list[dict[str, float]] = []
    own, start_version, corrects = OwnLogProbs(), context.decoder.version, correction.level != "none"
    async with engine.exclusive():
        if corrects and config.trainer.minibatches > 1:
            # Computed now, because the first update changes the weights.
            for minibatch in batch.minibatches(config.trainer.minibatches):
                await compute(learner.own_log_probs, minibatch.turns, own.record)
        for _ in range(config.trainer.epochs_per_batch):
            for minibatch in batch.minibatches(config.trainer.minibatches):
                turns = len(minibatch.turns)
                if rollout.max_staleness is not None:
                    minibatch = minibatch.since(context.decoder.version - rollout.max_staleness)
                stale += turns - len(minibatch.turns)
                if minibatch.turns:
                    first = not updates
                    known = corrects and minibatch in own
                    corrected = own.correct(minibatch, correction) if known else minibatch
                    observe = own.record if first and not known else None
                    anchor = corrects and not known
                    updates.append(
                        await compute(learner.update, corrected, algorithm, kl_reference, observe, anchor=anchor)
                    )
                    if learner.updates == 1:
                        await compute(on_first_update, groups, minibatch, updates[0], own)
        if step % TRIM_EVERY == 0:
            await compute(trim)
    if source is not None:
        await source.consume(collected.leased_keys, step)
    elapsed = time.perf_counter() - began
    learned = _learned(updates)
    if drift is not None:
        learned["kl"] = drift
    if learned["kl"] is not None and kl.target is not None:
        coef = kl.adapted_coef(coef, learned["kl"], len(collected.trajectories))
    tokens = engine.tokens_sampled - sampled
    mismatch_metrics = _mismatch(own, start_version, algorithm.loss)
    correcting = corrects_next(state.correcting, mismatch_metrics.get("mismatch/clipped"), config.algorithm.correction)
    if correcting != state.correcting:
        _log.warning("step %d: %s", step, _explained(mismatch_metrics, config.algorithm.correction, correcting))
    row = {
        "stage": "rl",
        "step": step,
        **_attempted(context, collected.trajectories),
        **learned,
        **(importance_metrics(own.differences(), correction) if corrects else {}),
        **mismatch_metrics,
        "corrected": float(corrects),
        "kl_coef": kl.coef,
        **batch.counts,
        **collected.counts,
        **({} if rollout.max_staleness is None else {"stale_turns": float(stale)}),
        "tokens": tokens,
        "prefilled_tokens": engine.tokens_prefilled - prefilled,
        "policy_version": context.decoder.version,
        "tokens_per_s": tokens / rollout_s,
        "rollout_s": rollout_s,
        "learn_s": elapsed - rollout_s,
        "time_s": elapsed,
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


def _mismatch(own: OwnLogProbs, version: int, loss: PolicyLoss) -> dict[str, float]:
    """The mismatch metrics of a step that began with policy `version`, on tokens of the version closest to it: samples
    that lag behind, as those of a separate sampler do, are measured too."""
    measured = own.closest_version(version)
    if measured is None:
        return {}
    return {**mismatch(own.differences(measured), loss), "mismatch/staleness": float(abs(version - measured))}


def _explained(metrics: Mapping[str, float], config: CorrectionConfig, begins: bool) -> str:
    """Return a message on why an automatic correction starts or stops."""
    share, bound = metrics["mismatch/clipped"], config.threshold * (1.0 if begins else 0.5)
    stale = int(metrics["mismatch/staleness"])
    lag = f", {stale} update{'s' * (stale != 1)} after sampling," if stale else ""
    found = (
        f"sampler and learner differ{lag} by {metrics['mismatch/mean_abs']:.2g} on average, which alone moves "
        f"{share:.2%} of the tokens outside the clip range ({'above' if begins else 'at most'} {bound:.2%})"
    )
    if begins:
        return f"{found}: from the next step on, ratios are relative to the learner's own pass (algorithm.correction)"
    return f"{found}: from the next step on, ratios are relative to the sampler again (algorithm.correction)"


def _attempted(context: TrainingContext, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return metrics of the attempts: success in total and by kind, rewards, and reasons of failures."""
    successes = [context.reward.succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    by_kind = {k: [s for t, s in zip(trajectories, successes, strict=True) if t.task.kind == k] for k in kinds}
    return {
        "success": sum(successes) / len(successes),
        **describe(trajectories),
        **(
            {}
            if context.config.reward.judge is None
            else judge_agreement(trajectories, context.config.reward.judge.compare_with)
        ),
        "errors": failure_reasons(trajectories),
        **{f"success/{kind}": sum(values) / len(values) for kind, values in by_kind.items()},
    }


def _learned(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return metrics of the updates: sums over tokens as means, None for values not measured."""
    sums = merge_metrics(updates)
    share = sums.get("weight") or 1.0
    averaged = ("entropy", "clipped", "sampler_kl", "kl", "value_loss", "value_clipped")
    means = {name: sums[name] / share for name in averaged if name in sums}
    if squared := sums.get("ratio_squared"):
        means["importance_ess"] = sums["ratio"] ** 2 / (share * squared)
        means["importance_chi2"] = squared / share - 1
    unscaled = ("loss", "policy_loss", "grad_norm", "max:log_ratio")
    return {
        **{name: sums[name] for name in unscaled if name in sums},
        **{"entropy": None, "kl": None, **means},
        "loss_tokens": sums.get("loss_tokens", 0.0),
        "computed_tokens": sums.get("computed_tokens", 0.0),
    }


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
