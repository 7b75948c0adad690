"""The command line: output, streams and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from midstream import cli


def midstream(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "midstream", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from midstream import cli; code = cli.run(['--help']); "
        "print(code, [name for name in ('torch', 'pydantic', 'rich', 'numpy', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, run) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0 and out.startswith("Usage: ")


def test_a_user_error_is_a_message_without_traceback_and_exit_2() -> None:
    done = midstream("show", "nothing", "--runs-dir", "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no run 'nothing'") and "Traceback" not in done.stderr


def test_a_misspelt_command_or_option_is_exit_2_with_the_nearest(run) -> None:
    code, _, err = run("trian")
    assert code == 2 and "did you mean 'train'?" in err
    code, _, err = run("runs", "--run-dir", "x")
    assert code == 2 and "--runs-dir" in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.cli, "get_command", lambda ctx, name: broken)
    with pytest.raises(ZeroDivisionError):
        cli.run(["doctor"])


def test_ctrl_c_is_exit_130() -> None:
    script = (
        "import os, signal, sys, click; from midstream import cli; stop = lambda: os.kill(os.getpid(), signal.SIGINT); "
        "cli.cli.get_command = lambda ctx, name: click.Command('x', callback=stop); "
        # A shell's background job, such as the tests may be, begins with the signal ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "cli.main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "stopped"


def test_a_closed_pipe_gives_no_error() -> None:
    command = f"{sys.executable} -m midstream models list | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_models_can_be_listed_pulled_and_found(tmp_path: Path) -> None:
    home = str(tmp_path)
    missing = midstream("models", "path", "tiny", MIDSTREAM_HOME=home)
    assert missing.returncode == 2 and "midstream models pull tiny" in missing.stderr
    pulled = midstream("models", "pull", "tiny", MIDSTREAM_HOME=home)
    assert pulled.returncode == 0 and pulled.stdout.strip() == str(tmp_path / "models" / "tiny")
    assert midstream("models", "path", "tiny", MIDSTREAM_HOME=home).stdout == pulled.stdout
    listed = midstream("models", "list", MIDSTREAM_HOME=home).stdout
    assert "random weights, seed 0" in listed and "smollm2-135m" in listed


def test_runs_shows_the_progress_of_each_run(run_files: Path, run) -> None:
    code, out, _ = run("runs", "--runs-dir", run_files.parent)
    assert code == 0
    assert out.splitlines()[1].split() == [
        "first",
        "finished",
        "tiny",
        "2026-01-02",
        "03:04",
        "2",
        "0.500",
        "3",
        "%",
        "90",
        "%",
    ]
    code, out, _ = run("runs", "--runs-dir", run_files)
    assert code == 0 and "no runs in" in out


def test_show_prints_a_run_and_its_trajectories(run_files: Path, run) -> None:
    code, out, _ = run("show", "last", "--runs-dir", run_files.parent)
    assert code == 0
    assert "90 % (80-95)" in out and "step 2: reward 0.500" in out
    assert "2 trajectories" in out and "What is [bold]2 + 2?" in out


def test_show_prints_a_trajectory_turn_by_turn(run_files: Path, run) -> None:
    code, out, _ = run("show", "first", "one", "--runs-dir", run_files.parent, "--tokens")
    assert code == 0
    order = [
        "What is [bold]2 + 2?",
        "planner",
        "<calculator>",
        "calculator(expression='2 + 2') -> 4",
        "generator",
        "answer 4",
    ]
    positions = [out.index(text) for text in order]
    assert positions == sorted(positions)
    assert "reward 1.000  = answer 1.000, cost did not apply" in out
    assert "response_ids [5, 6]" in out and "rollout_log_probs [-0.5, -0.25]" in out


def test_show_refuses_an_unknown_or_ambiguous_uid(run_files: Path, run) -> None:
    code, _, err = run("show", "first", "zzz", "--runs-dir", run_files.parent)
    assert code == 2 and "zzz" in err
    code, _, err = run("show", "first", "", "--runs-dir", run_files.parent)
    assert code == 2 and "several trajectories start with '': one-1, two-2" in err


def test_doctor_reports_and_changes_nothing(tmp_path: Path) -> None:
    done = midstream("doctor", "--runs-dir", tmp_path / "runs", MIDSTREAM_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stdout
    for about in ("python", "core", "train", "processor", "memory", "runs", "model cache", "torch", "bf16", "numerics"):
        assert f"  {about:<14} " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_exits_2_where_runs_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    from midstream.cli.doctor import examine

    findings = {finding.about: finding for finding in examine(tmp_path / "file" / "runs")}
    assert findings["runs"].level == "bad" and "--runs-dir" in findings["runs"].advice


def test_config_without_a_file_lists_every_setting_with_its_meaning(run) -> None:
    code, out, _ = run("config")
    assert code == 0
    listed = [line.split(" = ")[0] for line in out.splitlines() if not line.startswith(" ")]
    for setting in (
        "trainer.max_steps",
        "tasks.sources[].ratio",
        "flow.roles.NAME.sampling.max_tokens",
        "flow.settings.notation",
        "algorithm.loss.clip_low",
        "algorithm.kl.coef",
        "algorithm.baseline",
        "rollout.sampling.temperature",
    ):
        assert setting in listed


def test_config_schema_is_a_json_schema(run) -> None:
    import jsonschema

    code, out, _ = run("config", "--schema")
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_train_names_a_missing_config(run) -> None:
    code, _, err = run("train", "nowhere.yaml")
    assert code == 2 and "no config file at 'nowhere.yaml'" in err
