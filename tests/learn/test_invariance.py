"""From trajectories to a gradient: how the work is packed, shared, ordered or spread over workers changes nothing.

Whole trajectories of a multi-turn agent, as a rollout made them, go through advantages, weights and passes. In float32,
to 1e-5 of the largest element. `test_learner.py` holds the same for the size of a pass, full tuning and bfloat16
included."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midstream.core.config import parse_config
from midstream.core.types import Trajectory
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import Layer
from midstream.learn.algorithms.base import KLConfig
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.config import OptimizerConfig, TrainConfig
from midstream.learn.data.batch import make_batch
from midstream.learn.model import learner as learner_module
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import Scored, TokenSequence, score
from midstream.learn.run.setup import TrainingContext, build
from midstream.rollouts import groups_of

Groups = list[list[Trajectory]]
Gradient = dict[str, torch.Tensor]

ALL = 1 << 20
"""Tokens of a pass that holds everything."""


def context_of(model: Path, **settings: Any) -> TrainingContext:
    """The four-module agent on `tiny`, made such that positions matter and the adapter is not zero."""
    data: dict[str, Any] = {
        "policy": {"model": str(model), "lora": {"rank": 4, "alpha": 8}, "dtype": "float32", "device": "cpu"},
        "tasks": {"sources": [{"type": "calculate"}, {"type": "direct"}]},
        "flow": {
            "name": "agentflow",
            "tools": ["calculator"],
            "roles": {role: {"engine": "rules"} for role in ("analysis", "executor")},
            "settings": {"notation": "compact", "fields": [], "max_turns": 2},
        },
        "rollout": {"sampling": {"max_tokens": 5}, "concurrency": settings.get("concurrency", 64)},
        "trainer": {"deterministic": settings.get("deterministic", False), "threads": 1},
    }
    context = build(parse_config(TrainConfig, data))
    generator = torch.Generator().manual_seed(2)
    decoder = context.decoder
    assert isinstance(decoder, Decoder)
    with torch.no_grad():
        decoder.final_norm.mul_(8)
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            layer.norms["attention"].mul_(4)
        for adapter in decoder.adapters().values():
            for up in adapter.up:
                up.normal_(0, 0.05, generator=generator)
    return context


def roll(context: TrainingContext) -> Groups:
    """Two groups of three trajectories. Their rewards are made of what they say."""
    tasks = [context.tasks.get("train", place) for place in range(2)]
    made = asyncio.run(context.manager(None).run(groups_of(tasks, 3, prefix="r", seed=3)))
    rewarded = [replace(t, reward=float(sum(s.response_ids[0] for s in t.steps) % 7)) for t in made]
    return [rewarded[:3], rewarded[3:]]


def gradient(
    context: TrainingContext, groups: Groups, max_tokens: int = ALL, aggregation: str = "token_mean"
) -> Gradient:
    """What an update would move the weights by, before clipping."""
    algorithm = FlowGRPO.model_validate(
        {"aggregation": aggregation, "entropy_coef": 0.01, "kl": KLConfig(coef=0.05).model_dump()}
    )
    learner = Learner(context.decoder, context.weights, OptimizerConfig(max_grad_norm=1e9), max_tokens)
    batch = make_batch(groups, algorithm, failed="mask", keep_zero=True)
    found: Gradient = {}

    def reference(sequences: Sequence[TokenSequence]) -> torch.Tensor:
        with torch.no_grad():
            return score(context.decoder, sequences, adapter=False).log_probs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context.decoder, "version", context.decoder.version)
        patch.setattr(
            context.weights,
            "step",
            lambda optimizer: found.update({name: g.clone() for name, g in context.weights.gradients().items()}),
        )
        learner.update(batch, algorithm, reference)
    return found


def largest_difference(one: Gradient, other: Gradient) -> float:
    """Of any element, in parts of the largest one."""
    assert one.keys() == other.keys()
    largest = max(float(value.abs().max()) for value in one.values())
    assert largest > 1e-3
    return max(float((value - other[name]).abs().max()) for name, value in one.items()) / largest


@pytest.fixture(scope="module")
def context(tiny_path: Path) -> TrainingContext:
    return context_of(tiny_path)


@pytest.fixture(scope="module")
def groups(context: TrainingContext) -> Groups:
    found = roll(context)
    assert all(len(t.steps) > 2 for group in found for t in group)
    assert all(len({t.reward for t in group}) > 1 for group in found)
    return found


@pytest.fixture(scope="module")
def expected(context: TrainingContext, groups: Groups) -> Gradient:
    """The gradient of one pass over everything, prefixes shared."""
    return gradient(context, groups)


@pytest.mark.parametrize("max_tokens", [ALL, 600])
def test_prefixes_may_be_shared_or_each_sequence_of_a_pass_computed_alone(
    context: TrainingContext, groups: Groups, expected: Gradient, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    computed: list[int] = []

    def alone(decoder: Decoder, sequences: Sequence[TokenSequence]) -> Scored:
        each = [score(decoder, [sequence]) for sequence in sequences]
        computed.append(sum(one.computed for one in each))
        log_probs, entropy = torch.cat([one.log_probs for one in each]), torch.cat([one.entropy for one in each])
        return Scored(log_probs, entropy, replace(each[0].states, computed=computed[-1]))

    monkeypatch.setattr(learner_module, "score", alone)
    assert largest_difference(expected, gradient(context, groups, max_tokens)) <= 1e-5
    lengths = [len(s.prompt_ids + s.response_ids) for group in groups for t in group for s in t.steps]
    assert sum(computed) == sum(lengths) and (len(computed) == 1) == (max_tokens == ALL)


@pytest.mark.parametrize("aggregation", ["trajectory_turn_token", "token_mean", "prompt_mean", "sequence_mean"])
def test_groups_and_trajectories_may_come_in_any_order(
    context: TrainingContext, groups: Groups, aggregation: str
) -> None:
    shuffled = [random.Random(place).sample(group, len(group)) for place, group in enumerate(groups)][::-1]
    assert [t.uid for group in shuffled for t in group] != [t.uid for group in groups for t in group]
    in_order = gradient(context, groups, aggregation=aggregation)
    assert largest_difference(in_order, gradient(context, shuffled, 600, aggregation)) <= 1e-5


def test_a_trajectory_less_is_a_difference_that_would_be_seen(
    context: TrainingContext, groups: Groups, expected: Gradient
) -> None:
    assert largest_difference(expected, gradient(context, [groups[0][:2], groups[1]])) > 1e-2


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 1}, {"concurrency": 4}, {"concurrency": 4, "deterministic": True}, {"deterministic": True}],
    ids=str,
)
def test_any_number_of_trajectories_may_run_at_once(
    tiny_path: Path, groups: Groups, expected: Gradient, settings: dict[str, Any]
) -> None:
    """A token is drawn from the probabilities by its own seed, so the same tokens come out whoever shares the batch;
    its log-probability may differ by what a kernel rounds."""
    context = context_of(tiny_path, **settings)
    spread = roll(context)
    steps, same = ([s for group in made for t in group for s in t.steps] for made in (groups, spread))
    assert [(s.prompt_ids, s.response_ids) for s in steps] == [(s.prompt_ids, s.response_ids) for s in same]
    for one, other in zip(steps, same, strict=True):
        assert one.rollout_log_probs == pytest.approx(other.rollout_log_probs, abs=1e-5)
    assert largest_difference(expected, gradient(context, spread)) <= 1e-5
