"""Preference pairs from a search: which ones, and that a policy learns to prefer the better workflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.workflows.test_comparison import config

from midstream import api
from midstream.cli import run
from midstream.engines.chat import ChatTokenizer
from midstream.record.store import Store
from midstream.workflows import read_workflow


def training(model: Path, store: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": "writer",
        "policy": {"model": str(model), "lora": {"rank": 4}},
        "flow": {
            "name": "workflow_writer",
            "roles": {"executor": {"engine": "midstream.workflows.simulated:executor", "train": False}},
            "settings": {"operators": ["Custom", "ScEnsemble"], "guide": "", "example": "", "show_operators": False},
        },
        "reward": {"components": {"given": 1.0}, "success": "given"},
        "rollout": {"tasks_per_step": 4, "source": {"store": str(store), "wait_s": 1}},
        "algorithm": {"name": "dpo", "correction": {"level": "none"}},
        "optimizer": {"lr": 1e-3},
        "trainer": {"max_steps": 2, "test_tasks": 0, "eval_every": 0, "run_dir": str(folder / "run")},
    }


def test_the_pairs_of_a_search_train_a_policy(tmp_path: Path, tiny_path: Path, tiny_tokenizer: ChatTokenizer) -> None:
    store = tmp_path / "pairs.sqlite"
    searching, policy = tmp_path / "search.yaml", tmp_path / "policy.yaml"
    searching.write_text(json.dumps(config(tmp_path).model_dump(mode="json", exclude_none=True)))
    settings = training(tiny_path, store, tmp_path)
    policy.write_text(json.dumps(settings))
    given = ["workflow", "pairs", str(searching), "--policy", str(policy), "--tasks", "24", "--out", str(store)]
    assert run(given) == 2  # there is no search yet
    assert run(["workflow", "search", str(searching)]) == 0
    assert run(given) == 0
    assert run(given) == 2  # pairs of two searches are not mixed
    with Store(store, read_only=True) as opened:
        recorded = list(opened.trajectories.iterate(channel="train"))
    groups = {one.prompt_uid: one.task for one in recorded}
    assert len(recorded) == 2 * len(groups) >= 16
    for better, worse in zip(recorded[::2], recorded[1::2], strict=True):
        assert better.prompt_uid == worse.prompt_uid and (better.reward or 0) > (worse.reward or 0)
        steps = [one.steps[0] for one in (better, worse)]
        assert steps[0].prompt_ids == steps[1].prompt_ids and all(step.trainable for step in steps)
        texts = [tiny_tokenizer.text_of(step.response_ids) for step in steps]
        assert read_workflow(texts[0]) != read_workflow(texts[1]) and "\n" not in texts[0]
    result = api.train(settings, callbacks=[])
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["pairs"] == 4 and rows[0]["pair_loss"] == pytest.approx(0.6931, abs=0.01)
    assert rows[0]["grad_norm"] > 0 and result.step == 2
