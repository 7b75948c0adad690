"""What must not reach the weights stops a run, or costs one trajectory, and is named; what was saved stays."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import TrainingError
from midstream.engines.base import Completion, Request
from midstream.engines.torch.engine import TorchEngine
from midstream.evaluate.agreement import contents
from midstream.learn.config import TrainConfig
from midstream.learn.data.collect import Collected, Group
from midstream.learn.run import producer
from midstream.rewards import component


@component("letters_for_bad_input")
def letters(answer: str | None) -> float:
    """Share of letters in the answer."""
    return sum(c.isalpha() for c in answer or "") / max(len(answer or ""), 1)


def train(tiny_path: Path, run: Path, resume: bool = False) -> dict[str, Any]:
    """Four steps, each of them saved; what the run came to."""
    settings: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 4}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"letters_for_bad_input": 1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "sampling": {"max_tokens": 3}},
        "algorithm": {"name": "rloo"},
        "optimizer": {"lr": 0.01},
        "trainer": {
            "max_steps": 4,
            "save_every": 1,
            "eval_every": 0,
            "test_tasks": 0,
            "threads": 1,
            "deterministic": True,
            "run_dir": str(run),
        },
    }
    api.train(settings, callbacks=(), resume=resume)
    return contents(run)


@pytest.fixture(scope="module")
def undisturbed(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(tiny_path, tmp_path_factory.mktemp("undisturbed") / "run")


def test_a_broken_gradient_names_step_group_and_tensor_and_the_last_checkpoint_is_gone_on_from(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    collect, run = producer.collect, tmp_path / "run"

    def broken(group: Group) -> Group:
        """Sampled, it says, with a probability no number can hold: its ratio is infinite."""
        return [
            replace(t, steps=tuple(replace(s, rollout_log_probs=(-1e4,) * len(s.response_ids)) for s in t.steps))
            for t in group
        ]

    async def disturbed(*given: Any) -> Collected:
        collected = await collect(*given)
        first, second = collected.groups
        return replace(collected, groups=[first, broken(second)]) if given[4] == 3 else collected

    with monkeypatch.context() as patch:
        patch.setattr(producer, "collect", disturbed)
        message = r"^step 3: the gradient of \S+lora_[AB] is not finite at update 3, from the group 'train-000003-0001'"
        with pytest.raises(TrainingError, match=message):
            train(tiny_path, run)
    assert contents(run)["checkpoint"] == "step-000002"
    assert train(tiny_path, run, resume=True) == undisturbed


def test_a_reward_without_a_number_stops_the_run_before_anything_moves(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, run = producer.collect, tmp_path / "run"

    async def disturbed(*given: Any) -> Collected:
        collected = await collect(*given)
        (first, *others), *groups = collected.groups
        return replace(collected, groups=[[replace(first, reward=float("nan")), *others], *groups])

    monkeypatch.setattr(producer, "collect", disturbed)
    with pytest.raises(TrainingError, match=r"^step 1: the reward of trajectory 'train-000001-0000-00' is nan"):
        train(tiny_path, run)
    assert contents(run)["checkpoint"] == "step-000000"


def test_log_probabilities_that_are_too_few_cost_their_trajectory_and_no_other(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any]
) -> None:
    generate = TorchEngine.generate

    async def forgetful(self: TorchEngine, request: Request) -> Completion:
        completion = await generate(self, request)
        short = request.session == "train-000001-0001-02"
        return replace(completion, log_probs=completion.log_probs[:-1]) if short else completion

    monkeypatch.setattr(TorchEngine, "generate", forgetful)
    found = train(tiny_path, tmp_path / "run")
    first, *others = found["metrics.jsonl"]
    assert first["failed_trajectories"] == 1 and {row["failed_trajectories"] for row in others} == {0}
    assert "3 tokens but 2 log-probabilities" in first["errors"][0]["reason"]
    assert first["prefilled_tokens"] == undisturbed["metrics.jsonl"][0]["prefilled_tokens"]


MEMORY = {"database": "memory.sqlite", "namespace": "desk"}


@pytest.mark.parametrize(
    ("flow", "setting"),
    [
        ({"name": "react", "settings": {"reflections": MEMORY}}, r"flow\.settings\.reflections"),
        (
            {"tools": ["memory_retrieve"], "tool_settings": {"memory_retrieve": {**MEMORY, "write": True}}},
            r"flow\.tool_settings\.memory_retrieve\.write",
        ),
        ({"tools": ["memory_retrieve"], "tool_settings": {"memory_retrieve": MEMORY}}, None),
    ],
)
def test_a_memory_that_attempts_write_for_each_other_is_refused_where_runs_repeat(
    flow: dict[str, Any], setting: str | None
) -> None:
    config = {"tasks": {"sources": [{"type": "direct"}]}, "flow": flow}
    TrainConfig.model_validate(config)
    with (
        pytest.raises(ValueError, match=f"trainer.deterministic cannot be combined with {setting}")
        if setting
        else nullcontext()
    ):
        TrainConfig.model_validate(config | {"trainer": {"deterministic": True}})
