"""`midstream train` with a real vLLM server as its sampler: an adapter is published after each step, and judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engines.conftest import start_real_vllm  # noqa: F401  a fixture

from midstream import api
from midstream.core.errors import TrainingError
from midstream.engines.publication import FOLDER, Publication, published
from midstream.engines.vllm import VLLMEngine
from midstream.record.store import Store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@pytest.fixture
def settings(start_real_vllm, tmp_path: Path) -> dict[str, Any]:  # noqa: F811
    return {
        "policy": {
            "model": "smollm2-135m",
            "dtype": "float32",
            "lora": {"rank": 4},
            "engine": start_real_vllm("processed_logprobs").url,
            "adapter": "planner",
        },
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"length": -1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 12}},
        "algorithm": {"name": "rloo"},
        "optimizer": {"lr": 0.001},
        "trainer": {
            "max_steps": 2,
            "save_every": 1,
            "eval_every": 0,
            "test_tasks": 0,
            "run_dir": str(tmp_path / "run"),
        },
    }


def rows(settings: dict[str, Any]) -> list[dict[str, Any]]:
    log = Path(settings["trainer"]["run_dir"]) / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_server_samples_with_each_new_adapter(settings: dict[str, Any], tmp_path: Path) -> None:
    assert api.train(settings, callbacks=()).status == "finished"
    updated = [row for row in rows(settings) if row["loss_tokens"]]
    assert updated and all(row["canary/decided"] == 1 for row in updated)
    assert all(row["canary/share"] == pytest.approx(1, abs=0.05) for row in updated)
    assert all(row["mismatch/mean_abs"] < 1e-3 for row in updated)
    run = tmp_path / "run"
    with Store(run / "store.sqlite") as store:
        steps = [step for t in store.trajectories.iterate() for step in t.steps]
    assert {step.adapter for step in steps} == {"planner"} and min(step.policy_version for step in steps) == 0
    assert published(run / FOLDER, "planner")[-1].version == rows(settings)[-1]["policy_version"]


def test_a_server_that_keeps_an_old_adapter_stops_the_run(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = VLLMEngine.load_weights
    kept = tmp_path / "kept"

    async def old(engine: VLLMEngine, publication: Publication) -> None:
        if not kept.exists():
            shutil.copytree(publication.folder, kept)
        await load(engine, replace(publication, folder=kept))

    monkeypatch.setattr(VLLMEngine, "load_weights", old)
    with pytest.raises(TrainingError, match="the sampler did not take the update"):
        api.train(settings, callbacks=())
    assert rows(settings)[-1]["canary/share"] < 0.05
