"""What a run writes: nobody else can read it, and the secrets of its config are not in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from midstream.api import train
from midstream.core.errors import RunError
from midstream.core.secrets import NOT_KEPT
from midstream.evaluate.report import write_report
from midstream.learn.config import TrainConfig
from midstream.record.store import Store

SECRET = "hunter2hunter2"
AGENT = """import os
if not os.environ['MIDSTREAM_TRAJECTORY'].endswith('-00'):
    raise SystemExit('no access with ' + os.environ['SEARCH_KEY'])
"""
"""Fails in every attempt at a task but the first: a run goes on."""


def config(tiny_path: Path, run: Path, **env: str) -> TrainConfig:
    settings: dict[str, Any] = {
        "name": "private",
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {
            "name": "blackbox_command_agent",
            "settings": {
                "command": [sys.executable, "-c", AGENT, f"postgresql://me:{SECRET}@host/db"],
                "env": {"SEARCH_KEY": SECRET, **env},
            },
        },
        "reward": {"failed": 0.0},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "failed": "score", "sampling": {"max_tokens": 2}},
        "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 2, "threads": 1, "run_dir": str(run)},
    }
    return TrainConfig.model_validate(settings)


@pytest.fixture
def run(tiny_path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    train(config(tiny_path, folder))
    write_report(folder)
    return folder


def test_no_secret_of_the_config_is_in_what_a_run_writes(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"config.yaml", "report.html", "store.sqlite", "metrics.jsonl"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    for kept in (run / "config.yaml", run / "checkpoints" / "step-000001" / "config.yaml"):
        assert f"SEARCH_KEY: {NOT_KEPT}" in kept.read_text()
        assert f"postgresql://me:{NOT_KEPT}@host/db" in kept.read_text()
    assert f"no access with {NOT_KEPT}" in (run / "metrics.jsonl").read_text()


def test_only_its_owner_can_read_a_run(run: Path) -> None:
    assert run.stat().st_mode & 0o777 == 0o700
    inside = [path for path in run.rglob("*") if path.parent.name != "tensorboard"]
    modes = {str(path.relative_to(run)): path.stat().st_mode & 0o777 for path in inside if path.name != "checkpoints"}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert {"store.sqlite", "config.yaml", "checkpoints/step-000001/optimizer.safetensors"} <= modes.keys()


def test_another_secret_is_no_change_of_the_config(run: Path, tiny_path: Path) -> None:
    assert train(config(tiny_path, run, SEARCH_KEY="another one"), resume=True).status == "finished"
    with pytest.raises(RunError, match=r"flow\.settings\.env\.MORE: None -> "):
        train(config(tiny_path, run, MORE="x"), resume=True)


def test_a_store_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite"):
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes and set(modes.values()) == {0o600}, modes
