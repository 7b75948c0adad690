"""One step of training: collect attempts, make a batch of them, update the policy, and say how it went."""

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
from midstream.learn.batch import LearningBatch, check_log_probs, finite_reward, is_scored, make_batch
from midstream.learn.checkpoint import TrainState
from midstream.learn.collect import Group, collect
from midstream.learn.correction import most_uncertain
from midstream.learn.failures import check_failures
from midstream.learn.learner import Reference, together
from midstream.learn.losses.base import PolicyLoss
from midstream.learn.mismatch import OwnLogProbs, correction_for, corrects_next, importance_metrics, mismatch
from midstream.learn.normalise import normalised
from midstream.learn.penalty import penalised
from midstream.learn.policy_outputs import read, wanted
from midstream.learn.reference import swapped_reference
from midstream.learn.setup import TrainingContext
from midstream.learn.source import GroupSource
from midstream.record.store import Store
from midstream.rewards.judge import judge_agreement
from midstream.rewards.summary import describe, reasons

_log = logging.getLogger(__name__)

TRIM_EVERY = 4
"""Steps after which unused memory is given back: it costs a little each time, as it is soon asked for again."""

FirstUpdate = Callable[[Sequence[Group], LearningBatch, Mapping[str, float], OwnLogProbs], None]
"""Called after the first update of a run, with the groups and the batch it learned from, its metrics, and the
learner's log-probabilities before it."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """Where the run is after a step, and the step's row of metrics."""

    state: TrainState
    row: dict[str, Any]


async def take_step(
    parts: TrainingContext,
    store: Store,
    state: TrainState,
    start: Mapping[str, Tensor],
    on_first_update: FirstUpdate,
    source: GroupSource | None = None,
) -> Stepped:
    """The step after `state`. `start` are the weights that reinforcement learning began with, where the reference is
    that; `source` is where groups come from that are not rolled out here."""
    config, engine, learner = parts.config, parts.engine, parts.learner
    step, began = state.step + 1, time.perf_counter()
    sampled, prefilled = engine.tokens_sampled, engine.tokens_prefilled
    collected = await collect(parts, store, state, step, source)
    check_failures(collected.trajectories, config.rollout.max_failed, first=state.step == 0)
    rollout_s = time.perf_counter() - began
    check_log_probs(collected.trajectories)
    coef = config.algorithm.kl.coef if state.kl_coef is None else state.kl_coef
    kl = config.algorithm.kl.model_copy(update={"coef": coef})
    correction = correction_for(config.algorithm, state.correcting)
    algorithm = config.algorithm.model_copy(update={"kl": kl, "correction": correction})
    rollout = config.rollout
    counts = partial(is_scored, failed=rollout.failed, truncated=rollout.truncated)
    rewards = state.rewards.including(finite_reward(t) for t in collected.trajectories if counts(t))
    groups, greedy = normalised(collected.groups, collected.greedy, config.reward.normalize, counts, rewards)
    drift, stale = None, 0
    reference = reference_of(parts, start)
    readings = await compute(read, learner, groups, wanted(algorithm), reference)
    if kl.placement == "reward" and kl.coef:
        groups, drift = penalised(groups, readings, kl.coef)
    batch = make_batch(
        groups,
        algorithm,
        failed=rollout.failed,
        truncated=rollout.truncated,
        altered=rollout.altered_sampling,
        greedy=greedy,
        readings=readings,
        memory=state.memory,
        keep_zero=bool((kl.coef and kl.placement == "loss") or algorithm.entropy_coef or learner.critic),
    )
    batch = most_uncertain(batch, readings, algorithm.top_entropy)
    measured = reference if drift is None and _is_measured(parts, kl, step) else None
    updates: list[dict[str, float]] = []
    own, began_with, corrects = OwnLogProbs(), parts.decoder.version, correction.level != "none"
    async with engine.exclusive():
        if corrects and config.trainer.minibatches > 1:
            # The weights will have moved when the later parts are learned from.
            for part in batch.parts(config.trainer.minibatches):
                await compute(learner.own_log_probs, part.turns, own.take)
        for _ in range(config.trainer.epochs_per_batch):
            for part in batch.parts(config.trainer.minibatches):
                turns = len(part.turns)
                if rollout.max_staleness is not None:
                    part = part.since(parts.decoder.version - rollout.max_staleness)
                stale += turns - len(part.turns)
                if part.turns:
                    first = not updates
                    known = corrects and part in own
                    chosen = own.correct(part, correction) if known else part
                    observe = own.take if first and not known else None
                    anchor = corrects and not known
                    updates.append(await compute(learner.update, chosen, algorithm, measured, observe, anchor=anchor))
                    if learner.updates == 1:
                        await compute(on_first_update, groups, part, updates[0], own)
        if step % TRIM_EVERY == 0:
            await compute(trim)
    if source is not None:
        await source.consume(collected.taken, step)
    elapsed = time.perf_counter() - began
    learned = _learned(updates)
    if drift is not None:
        learned["kl"] = drift
    if learned["kl"] is not None and kl.target is not None:
        coef = kl.followed(coef, learned["kl"], len(collected.trajectories))
    tokens = engine.tokens_sampled - sampled
    differ = _differ(own, began_with, algorithm.loss)
    correcting = corrects_next(state.correcting, differ.get("mismatch/clipped"), config.algorithm.correction)
    if correcting != state.correcting:
        _log.warning("step %d: %s", step, _explained(differ, config.algorithm.correction, correcting))
    row = {
        "stage": "rl",
        "step": step,
        **_attempted(parts, collected.trajectories),
        **learned,
        **(importance_metrics(own.differences(), correction) if corrects else {}),
        **differ,
        "corrected": float(corrects),
        "kl_coef": kl.coef,
        **batch.counts,
        **collected.counts,
        **({} if rollout.max_staleness is None else {"stale_turns": float(stale)}),
        "tokens": tokens,
        "prefilled_tokens": engine.tokens_prefilled - prefilled,
        "policy_version": parts.decoder.version,
        "tokens_per_s": tokens / rollout_s,
        "rollout_s": rollout_s,
        "learn_s": elapsed - rollout_s,
        "time_s": elapsed,
    }
    reached = TrainState(
        step,
        collected.progress.position,
        learner.updates,
        parts.decoder.version,
        kl_coef=coef if kl.target is not None else state.kl_coef,
        seen=collected.progress.seen,
        memory=batch.memory,
        rewards=rewards,
        replay=collected.replay,
        correcting=correcting,
    )
    return Stepped(reached, row)


def _differ(own: OwnLogProbs, version: int, loss: PolicyLoss) -> dict[str, float]:
    """The mismatch metrics of a step that began with policy `version`, on tokens of the version closest to it: samples
    that lag behind, as those of a separate sampler do, are measured too."""
    measured = own.closest_version(version)
    if measured is None:
        return {}
    return {**mismatch(own.differences(measured), loss), "mismatch/staleness": float(abs(version - measured))}


def _explained(differ: Mapping[str, float], config: CorrectionConfig, begins: bool) -> str:
    """Why an automatic correction begins or ends."""
    share, bound = differ["mismatch/clipped"], config.threshold * (1.0 if begins else 0.5)
    stale = int(differ["mismatch/staleness"])
    lag = f", {stale} update{'s' * (stale != 1)} after sampling," if stale else ""
    found = (
        f"sampler and learner differ{lag} by {differ['mismatch/mean_abs']:.2g} in the mean, which alone takes "
        f"{share:.2%} of the tokens outside the clip range ({'above' if begins else 'at most'} {bound:.2%})"
    )
    if begins:
        return f"{found}: from the next step on ratios are taken to the learner's own pass (algorithm.correction)"
    return f"{found}: from the next step on ratios are taken to the sampler again (algorithm.correction)"


def _attempted(parts: TrainingContext, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """How the attempts went: success, by kind too, reward, and why some failed."""
    won = [parts.reward.succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    by_kind = {k: [w for t, w in zip(trajectories, won, strict=True) if t.task.kind == k] for k in kinds}
    return {
        "success": sum(won) / len(won),
        **describe(trajectories),
        **(
            {}
            if parts.config.reward.judge is None
            else judge_agreement(trajectories, parts.config.reward.judge.compare_with)
        ),
        "errors": reasons(trajectories),
        **{f"success/{kind}": sum(values) / len(values) for kind, values in by_kind.items()},
    }


def _learned(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the step's updates came to; sums over tokens as means, None for what was not measured."""
    sums = together(updates)
    share = sums.get("weight") or 1.0
    averaged = ("entropy", "clipped", "sampler_kl", "kl", "value_loss", "value_clipped")
    means = {name: sums[name] / share for name in averaged if name in sums}
    if squared := sums.get("ratio_squared"):
        means["importance_ess"] = sums["ratio"] ** 2 / (share * squared)
        means["importance_chi2"] = squared / share - 1
    as_they_are = ("loss", "policy_loss", "grad_norm", "max:log_ratio")
    return {
        **{name: sums[name] for name in as_they_are if name in sums},
        **{"entropy": None, "kl": None, **means},
        "loss_tokens": sums.get("loss_tokens", 0.0),
        "computed_tokens": sums.get("computed_tokens", 0.0),
    }


def _is_measured(parts: TrainingContext, kl: KLConfig, step: int) -> bool:
    """Whether this step asks for the distance to the reference: always when it counts, else now and then, and before
    the first update, as the self-check wants to know."""
    if kl.coef > 0:
        return True
    return kl.measure_every > 0 and (step % kl.measure_every == 0 or parts.learner.updates == 0)


def reference_of(parts: TrainingContext, start: Mapping[str, Tensor]) -> Reference | None:
    """The reference policy of `kl.reference`; `start` are the weights that reinforcement learning began with."""
    if parts.config.algorithm.kl.reference == "start":
        return swapped_reference(parts.decoder, parts.weights, start)
    return parts.reference
