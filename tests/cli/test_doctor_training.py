"""`midstream doctor --training` with a config: its checks and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from midstream import cli


@pytest.fixture
def config(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid training config, alone in the working directory."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {
            "name": "agentflow",
            "tools": ["calculator"],
            "roles": {role: {"engine": "rules"} for role in ("analysis", "executor", "verifier")},
            "settings": {"notation": "compact", "fields": [], "max_turns": 2},
        },
        "rollout": {"group_size": 3, "sampling": {"max_tokens": 4}},
        "trainer": {"threads": 1},
    }
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(settings))
    return path


def test_a_config_is_checked_and_no_run_begins(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--training", str(config)]) == 0
    out = capsys.readouterr().out
    assert "\nok    loss on planner " in out and "\nok    gradient is the plain model's " in out and "bad " not in out
    assert list(config.parent.iterdir()) == [config]


def test_failing_attempts_are_reported_with_their_reason(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor", "--training", str(config), "rollout.timeout_s=0.0001"]) == 2
    out = capsys.readouterr().out
    (bad,) = (line for line in out.splitlines() if line.startswith("bad "))
    assert bad.startswith("bad   attempts end well") and "rollout.timeout_s" in bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training", "nowhere.yaml"], "no config file at 'nowhere.yaml'"),
        (["--training", "own.yaml", "trainer.max_step=3"], "trainer.max_step: unknown key; did you mean 'max_steps'?"),
        (["--training", "own.yaml", "flow.roles.policy={train: false}"], "no role of the flow 'agentflow' is trained"),
        (["--training", "policy.tuning=fully"], "policy.tuning"),
        (["own.yaml"], "need --training"),
    ],
)
def test_configs_that_cannot_be_checked_are_refused(
    config: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.run(["doctor", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and printed.out == ""
