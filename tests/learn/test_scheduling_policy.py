"""π(v | s) is trained like any other role: masked alike in sampler and learner, ratio 1 at the first update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.evaluate.runs import read_rows
from midstream.learn.config import TrainConfig
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.run.setup import build
from midstream.record.store import Store


def settings(tiny_path: Path, run: Path) -> dict[str, Any]:
    return {
        "policy": {"model": str(tiny_path), "tuning": "full", "dtype": "float32", "numerics": "exact"},
        "tasks": {"sources": [{"type": "schedule"}]},
        "flow": {"name": "plan_scheduler"},
        "reward": {"components": {"schedule": 1.0}, "success": "schedule"},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 4}},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 0.001},
        "trainer": {
            "max_steps": 2,
            "eval_every": 0,
            "test_tasks": 0,
            "threads": 1,
            "deterministic": True,
            "run_dir": str(run),
        },
    }


def test_sampler_and_learner_normalise_over_the_feasible_nodes(tiny_path: Path, tmp_path: Path) -> None:
    config = settings(tiny_path, tmp_path / "run")
    api.train(config, callbacks=[])
    first, second = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert first["max:log_ratio"] == 0 and first["mismatch/mean_abs"] == 0 and first["grad_norm"] > 0
    assert second["mismatch/mean_abs"] == 0 and first["altered_sampling"] == 0
    with Store(tmp_path / "run" / "store.sqlite") as store:
        recorded = [one for one in store.trajectories.iterate(channel="train") if one.uid.startswith("train-000001")]
    choices = [
        (choice, trajectory.steps[choice["step_index"]])
        for trajectory in recorded
        for choice in trajectory.metadata["schedule"]["choices"]
    ]
    assert len(recorded) == 8 and choices
    decoder = build(TrainConfig.model_validate(config)).decoder
    again = score(decoder, [TokenSequence.of(step) for _, step in choices]).log_probs.tolist()
    for choice, step in choices:
        assert step.text in choice["feasible"]
        recomputed, again = sum(again[: len(step.response_ids)]), again[len(step.response_ids) :]
        assert choice["log_prob"] == pytest.approx(recomputed, abs=1e-6)
    assert not again
