"""One step of training: collect attempts, make a batch of them, update the policy, and say how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midstream.core.types import Trajectory
from midstream.engines.torch.compute import compute, trim
from midstream.learn.algorithms.base import KLConfig
from midstream.learn.batch import LearningBatch, make_batch
from midstream.learn.checkpoint import TrainState
from midstream.learn.collect import Group, collect
from midstream.learn.learner import Reference, together
from midstream.learn.log_probs import TokenSequence, score
from midstream.learn.penalty import penalised
from midstream.learn.setup import Parts
from midstream.record.store import Store
from midstream.rewards.summary import describe, reasons

TRIM_EVERY = 4
"""Steps after which unused memory is given back: it costs a little each time, as it is soon asked for again."""

FirstUpdate = Callable[[Sequence[Group], LearningBatch, Mapping[str, float]], None]
"""Told of the first update of a run: what it learned from, and its metrics."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """Where the run is after a step, and the step's row of metrics."""

    state: TrainState
    row: dict[str, Any]


async def take_step(
    parts: Parts, store: Store, state: TrainState, start: Mapping[str, Tensor], on_first_update: FirstUpdate
) -> Stepped:
    """The step after `state`. `start` are the weights that reinforcement learning began with, where the reference is
    that."""
    config, engine, learner = parts.config, parts.engine, parts.learner
    step, began = state.step + 1, time.perf_counter()
    sampled, prefilled = engine.tokens_sampled, engine.tokens_prefilled
    collected = await collect(parts, store, state.position, step)
    rollout_s = time.perf_counter() - began
    coef = config.algorithm.kl.coef if state.kl_coef is None else state.kl_coef
    kl = config.algorithm.kl.model_copy(update={"coef": coef})
    algorithm = config.algorithm.model_copy(update={"kl": kl})
    groups, drift = collected.groups, None
    reference = reference_of(parts, kl.reference, start) if _is_measured(parts, kl, step) else None
    if reference is not None and kl.placement == "reward" and kl.coef:
        groups, drift = await compute(penalised, groups, partial(learner.measure, reference), kl.coef)
        reference = None
    batch = make_batch(
        groups,
        algorithm,
        failed=config.rollout.failed,
        truncated=config.rollout.truncated,
        greedy=collected.greedy,
        keep_zero=bool((kl.coef and kl.placement == "loss") or algorithm.entropy_coef),
    )
    updates: list[dict[str, float]] = []
    async with engine.exclusive():
        for _ in range(config.trainer.epochs_per_batch):
            for part in batch.parts(config.trainer.minibatches):
                if part.turns:
                    updates.append(await compute(learner.update, part, algorithm, reference))
                    if learner.updates == 1:
                        on_first_update(groups, part, updates[0])
        if step % TRIM_EVERY == 0:
            await compute(trim)
    elapsed = time.perf_counter() - began
    learned = _learned(updates)
    if drift is not None:
        learned["kl"] = drift
    if learned["kl"] is not None and kl.target is not None:
        coef = kl.followed(coef, learned["kl"], len(collected.trajectories))
    tokens = engine.tokens_sampled - sampled
    row = {
        "stage": "rl",
        "step": step,
        **_attempted(parts, collected.trajectories),
        **learned,
        "kl_coef": kl.coef,
        **batch.counts,
        "dropped_groups": float(collected.dropped),
        "tokens": tokens,
        "prefilled_tokens": engine.tokens_prefilled - prefilled,
        "policy_version": parts.decoder.version,
        "tokens_per_s": tokens / rollout_s,
        "rollout_s": rollout_s,
        "learn_s": elapsed - rollout_s,
        "time_s": elapsed,
    }
    adapted = coef if kl.target is not None else state.kl_coef
    return Stepped(TrainState(step, collected.position, learner.updates, parts.decoder.version, adapted), row)


def _attempted(parts: Parts, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """How the attempts went: success, by kind too, reward, and why some failed."""
    won = [parts.reward.succeeded(t) for t in trajectories]
    kinds = sorted({t.task.kind for t in trajectories})
    by_kind = {k: [w for t, w in zip(trajectories, won, strict=True) if t.task.kind == k] for k in kinds}
    return {
        "success": sum(won) / len(won),
        **describe(trajectories),
        "errors": reasons(trajectories),
        **{f"success/{kind}": sum(values) / len(values) for kind, values in by_kind.items()},
    }


def _learned(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the step's updates came to; sums over tokens as means, None for what was not measured."""
    sums = together(updates)
    share = sums.get("weight") or 1.0
    means = {name: sums[name] / share for name in ("entropy", "clipped", "sampler_kl", "kl") if name in sums}
    as_they_are = ("loss", "policy_loss", "grad_norm", "max:log_ratio")
    return {
        **{name: sums[name] for name in as_they_are if name in sums},
        **{"entropy": None, "kl": None, **means},
        "loss_tokens": sums.get("loss_tokens", 0.0),
        "computed_tokens": sums.get("computed_tokens", 0.0),
    }


def _is_measured(parts: Parts, kl: KLConfig, step: int) -> bool:
    """Whether this step asks for the distance to the reference: always when it counts, else now and then, and before
    the first update, as the self-check wants to know."""
    if kl.coef > 0:
        return True
    return kl.measure_every > 0 and (step % kl.measure_every == 0 or parts.learner.updates == 0)


def reference_of(parts: Parts, kind: str, start: Mapping[str, Tensor]) -> Reference | None:
    """The reference policy of `kl.reference`; `start` are the weights that reinforcement learning began with. None
    where there is no base left to compare with: in full tuning the policy without its adapter is itself."""
    decoder, weights = parts.decoder, parts.weights

    def base(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad():
            return score(decoder, sequences, adapter=False).log_probs

    def as_it_started(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad(), weights.swapped(start):
            return score(decoder, sequences).log_probs

    if kind == "start":
        return as_it_started
    return base if weights.tuning == "lora" else None
