"""Whole trajectories of the four-module agent with tools, sampled by a real model: exact tokens and masks.

The text of half of the planners is forced during sampling, because `tiny` would never call a tool; everything else,
including log-probabilities, is computed by the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from midstream.core.config import parse_config
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Status, Trajectory
from midstream.engines.torch import engine as torch_engine
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.layers import Layer
from midstream.engines.torch.sampling import sample
from midstream.learn.config import TrainConfig
from midstream.learn.data.batch import LearningBatch, make_batch
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.run.setup import TrainingContext, build
from midstream.rollouts import groups_of
from midstream.tools import load_tools

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.0}


def config_for(model: Path, dtype: str, **roles: Any) -> TrainConfig:
    data: dict[str, Any] = {
        "policy": {"model": str(model), "lora": {"rank": 8, "alpha": 16}, "dtype": dtype, "device": "cpu"},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {
            "name": "agentflow",
            "tools": ["calculator"],
            "roles": {"analysis": {"engine": "rules"}, "executor": {"engine": "rules"}, **roles},
            "settings": {"notation": "compact", "fields": [], "max_turns": 3},
        },
        "rollout": {"sampling": {"max_tokens": 24}, "concurrency": 16},
        "trainer": {"deterministic": True},
    }
    return parse_config(TrainConfig, data)


def stirred(parts: TrainingContext) -> TrainingContext:
    """`parts` with larger random weights, so that positions matter, and a non-zero adapter."""
    generator = torch.Generator().manual_seed(2)
    decoder = parts.decoder
    assert isinstance(decoder, Decoder)
    with torch.no_grad():
        decoder.final_norm.mul_(8)
        for layer in decoder.layers:
            assert isinstance(layer, Layer)
            layer.norms["attention"].mul_(4)
        for adapter in decoder.adapters().values():
            for up in adapter.up:
                up.normal_(0, 0.05, generator=generator)
    return parts


PLANS = ("calculator: 12 * 3", "calculator: 36 -", "calculator: 36 + 1")
"""Text of guided planners by turn: a valid call, an invalid one, the last."""


def roll(parts: TrainingContext, temperature: float = 1.0, size: int = 4) -> list[Trajectory]:
    """Two groups; every other trajectory is guided."""
    tasks = [parts.tasks.get("train", place) for place in range(2)]
    attempts = groups_of(tasks, size, prefix="r", seed=3)
    end = min(parts.tokenizer.end_ids)
    script = {
        derive_seed(attempt.seed, "call", 2 * turn): (*parts.tokenizer.encode(text), end)
        for attempt in attempts[::2]
        for turn, text in enumerate(PLANS)
    }

    def guided(
        logits: torch.Tensor, params: Sequence[SamplingParams], seeds: Sequence[int], position: Sequence[int], *steered
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens, log_probs, whole = sample(logits, params, seeds, position, *steered)
        for row, (seed, place) in enumerate(zip(seeds, position, strict=True)):
            if seed in script:
                token = script[seed][place]
                scaled = logits.float()[row] / (params[row].temperature or 1.0)
                tokens[row], log_probs[row] = token, torch.log_softmax(scaled, -1)[token]
        return tokens, log_probs, whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "sample", guided)
        return asyncio.run(parts.manager(None).run(attempts, temperature=temperature))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def parts(request: pytest.FixtureRequest, tiny_path: Path) -> TrainingContext:
    roles = {"verifier": {"engine": "frozen"}, "generator": {"train": False}}
    return stirred(build(config_for(tiny_path, request.param, **roles)))


@pytest.fixture(scope="module", params=[1.0, 0.7])
def rolled(request: pytest.FixtureRequest, parts: TrainingContext) -> list[Trajectory]:
    return roll(parts, request.param)


def test_trajectories_have_several_turns_with_successful_and_failed_tools(rolled: list[Trajectory]) -> None:
    assert all(trajectory.status is Status.COMPLETED for trajectory in rolled)
    assert all(len(trajectory.steps) >= 3 for trajectory in rolled)
    for trajectory in rolled[::2]:
        assert [call.error_kind for call in trajectory.tool_calls] == ["", "raised", ""][: trajectory.turns]
        assert trajectory.tool_calls[0].result == "36"
    assert max(trajectory.turns for trajectory in rolled) == 3


def test_prompts_of_a_trajectory_extend_each_other_token_for_token(
    parts: TrainingContext, rolled: list[Trajectory]
) -> None:
    for trajectory in rolled:
        for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
            assert (step.parent, step.branch_reason) == (before.step_index, "")
            known = before.prompt_ids + before.response_ids
            assert step.prompt_ids[: len(known)] == known
        assert [step.is_last for step in trajectory.steps] == [False] * (len(trajectory.steps) - 1) + [True]


def test_token_ids_decode_to_the_recorded_text(parts: TrainingContext, rolled: list[Trajectory]) -> None:
    for step in (step for trajectory in rolled for step in trajectory.steps):
        assert parts.tokenizer.text_of(step.response_ids) == step.text
        assert parts.tokenizer.decode(step.prompt_ids) == parts.tokenizer.template(step.messages, open_reply=True)


def test_the_learner_reproduces_the_recorded_log_probabilities(
    parts: TrainingContext, rolled: list[Trajectory]
) -> None:
    tolerance = TOLERANCE[str(parts.decoder.dtype).removeprefix("torch.")]
    for adapter in (True, False):
        steps = [s for t in rolled for s in t.steps if (s.role != "verifier") == adapter]
        sequences = [TokenSequence.of(step) for step in steps]
        reported = torch.tensor([value for step in steps for value in step.rollout_log_probs or ()])
        with torch.no_grad():
            found = score(parts.decoder, sequences, adapter=adapter).log_probs
            wrong = score(parts.decoder, sequences, adapter=not adapter).log_probs
        assert (found - reported).abs().max() <= tolerance
        assert (wrong - reported).abs().max() > 0.1


def test_only_sampled_tokens_of_the_trained_role_carry_loss(parts: TrainingContext, rolled: list[Trajectory]) -> None:
    spoke: set[str] = set()
    for step in (step for trajectory in rolled for step in trajectory.steps):
        carries = step.role == "planner"
        assert step.loss_mask == (0,) * len(step.prompt_ids) + (int(carries),) * len(step.response_ids), step.role
        spoke.add(step.role)
    assert spoke == {"planner", "verifier", "generator"}


def test_responses_of_other_roles_do_not_change_the_gradient(parts: TrainingContext, rolled: list[Trajectory]) -> None:
    rewarded = [replace(t, reward=float(place % 2)) for place, t in enumerate(rolled)]
    groups = [rewarded[:4], rewarded[4:]]

    def batch(groups: list[list[Trajectory]]) -> LearningBatch:
        return make_batch(groups, parts.config.algorithm, failed="mask")

    plain = batch(groups)
    assert {turn.role for turn in plain.turns} == {"planner"}
    loud = [
        [
            replace(
                t,
                steps=tuple(
                    s if s.role == "planner" else replace(s, rollout_log_probs=(-99.0,) * len(s.response_ids))
                    for s in t.steps
                ),
            )
            for t in group
        ]
        for group in groups
    ]
    assert batch(loud).turns == plain.turns
    all_trained = [[replace(t, steps=tuple(replace(s, trainable=True) for s in t.steps)) for t in g] for g in loud]
    assert batch(all_trained).turns != plain.turns


def test_a_deterministic_rollout_is_bitwise_repeatable_for_any_tool_latency(
    parts: TrainingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(trajectories: list[Trajectory]) -> list[Any]:
        return [[(s.prompt_ids, s.response_ids, s.rollout_log_probs) for s in t.steps] for t in trajectories]

    once = recorded(roll(parts))
    (calculator,) = load_tools(["calculator"])
    plain, waits = calculator.function, iter([0.02, 0.0, 0.01] * 50)

    def slowly(expression: str) -> Any:
        time.sleep(next(waits))
        return plain(expression)

    monkeypatch.setitem(calculator.__dict__, "function", slowly)
    assert recorded(roll(parts)) == once
    assert len(list(waits)) < 150, "the slow tool was never called"
