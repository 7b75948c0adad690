"""Logging to Weights & Biases, offline. Skipped without the package."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from midstream import api
from midstream.core.errors import ConfigError, RunError
from midstream.learn.config import WandbConfig
from midstream.learn.run import wandb_log


def config(folder: Path, **wandb: Any) -> dict[str, Any]:
    return {
        "policy": {"model": "tiny", "tuning": "full"},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"correctness": 1.0}},
        "rollout": {"tasks_per_step": 1, "group_size": 2, "sampling": {"max_tokens": 4}},
        "algorithm": {"name": "reinforce", "kl": {"coef": 0.0}},
        "trainer": {"max_steps": 1, "test_tasks": 2, "eval_every": 0, "run_dir": str(folder), "wandb": wandb},
    }


def test_a_run_is_logged_offline_into_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    api.train(config(tmp_path / "run", project="p"), callbacks=[])
    logs = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 1 and b"eval/test/success" in logs[0].read_bytes()
    kept = (tmp_path / "run" / "wandb_id").read_text().strip()
    assert logs[0].name == f"run-{kept}.wandb"


def test_the_mode_is_offline_without_a_key_or_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_log.offline_or_online(WandbConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr(wandb_log, "HOST", ("127.0.0.1", 9))
    assert wandb_log.offline_or_online(WandbConfig()) == "offline"
    assert wandb_log.offline_or_online(WandbConfig(mode="online")) == "online"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match="needs the package wandb"):
        wandb_log.WandbLog(WandbConfig(), tmp_path, "run")


def test_a_log_that_does_not_start_fails_the_run_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception): ...

    def init(**settings: Any) -> None:
        raise Error("API key is invalid")

    package = SimpleNamespace(
        __spec__=ModuleSpec("wandb", None), Error=Error, Settings=lambda **settings: None, init=init
    )
    monkeypatch.setitem(sys.modules, "wandb", cast(Any, package))
    with pytest.raises(RunError, match="API key is invalid") as error:
        api.train(config(tmp_path / "run", mode="online"), callbacks=[])
    assert "WANDB_API_KEY" in error.value.hint
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
