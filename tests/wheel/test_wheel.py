"""The wheel, installed in a separate environment and used outside the repository (`make test-wheel`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_agent.py"
SMALL = ("policy.model=tiny", "policy.lora.last_layers=2", "warm_start.examples=8", "rollout.tasks_per_step=2")
SHORT = ("trainer.max_steps=2", "trainer.test_tasks=4", "trainer.eval_every=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def run(folder: Path, program: str, *words: str) -> str:
    """Run a program of the environment in `folder`, without the repository; return its output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MIDSTREAM"))}
    environment = {**kept, "MIDSTREAM_HOME": str(folder / "home")}
    command = [os.path.join(os.environ["MIDSTREAM_WHEEL"], program), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_package_is_used(folder: Path) -> None:
    where = run(folder, "python", "-c", "import midstream; print(midstream.__file__)")
    assert "site-packages" in where


def test_help_and_a_healthy_machine(folder: Path) -> None:
    assert "midstream train quickstart" in run(folder, "midstream", "--help")
    assert "bad " not in run(folder, "midstream", "doctor")


def test_a_model_is_pulled_and_a_shipped_config_trained_by_name(folder: Path) -> None:
    assert run(folder, "midstream", "models", "pull", "tiny").strip().endswith("/home/models/tiny")
    printed = run(folder, "midstream", "train", "quickstart", *SMALL, *SHORT)
    assert "quickstart finished" in printed
    assert json.loads((folder / "runs/quickstart/run.json").read_text())["status"] == "finished"
    assert (folder / "runs/quickstart/report.html").is_file()


def test_a_custom_agent_trains(folder: Path) -> None:
    shutil.copy(EXAMPLE, folder)
    assert "finished: runs/own_agent/report.html" in run(folder, "python", EXAMPLE.name)
    assert "<|im_start|>user" in run(folder, "midstream", "show", "own_agent", "train-000001-0000-00")
