"""Wrong input on the command line: exit code 2, one message with a hint, and no partial files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from midstream import cli
from midstream.record.store import Store

Refused = Callable[..., str]

SETTINGS: dict[str, Any] = {
    "policy": {"model": "MODEL", "dtype": "float32", "lora": {"rank": 2}},
    "tasks": {"sources": [{"type": "direct"}]},
    "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 2}},
    "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 0, "threads": 1},
}


@pytest.fixture
def config(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid training config in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(SETTINGS).replace("MODEL", str(tiny_path)))
    return path


@pytest.fixture
def refused(config: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Assert that `midstream train` refuses these overrides; return its message."""

    def call(*overrides: object, command: str = "train") -> str:
        before = sorted(config.parent.rglob("*"))
        code = cli.run([command, str(config), *map(str, overrides)])
        printed = capsys.readouterr()
        assert code == 2, printed
        assert printed.err.startswith("error: ") and printed.err.count("error: ") == 1
        assert "Traceback" not in printed.err
        assert sorted(config.parent.rglob("*")) == before, "something was left behind"
        return printed.err

    return call


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_step=3", "trainer.max_step: unknown key; did you mean 'max_steps'?"),
        ("trianer.max_steps=3", "trianer: unknown key; did you mean 'trainer'?"),
        ("algorithm={name: flow_grpo, loss: {name: ppo_clip, clip_hi: 0.3}}", "unknown key; did you mean 'clip_high'?"),
        (
            "algorithm={name: ppo, std: group}",
            "algorithm.std: unknown key; 'ppo' has no such setting, but aggregation, ",
        ),
        ("algorithm={name: ppo, std: group}", "to remove it: 'algorithm={name: ppo}'"),
        ("algorithm.kl.coef=0", "algorithm.name: is required when other settings of algorithm are given"),
        (
            "algorithm={name: grpo, kl: {target: 0.1, coef: 0}}",
            "kl.target needs an initial kl.coef above 0",
        ),
        ("algorithm={name: gdpo, kl: {placement: reward}}", "'gdpo' needs unmodified rewards"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas: each must be at least 0 and less than 1 (got [0.9, 1.0])"),
        ("algorithm.name=gpro", "'flow_grpo', 'grpo', 'dr_grpo'"),
        ("trainer.max_steps=many", "trainer.max_steps: Input should be a valid integer"),
        ("optimizer.lr=-1", "optimizer.lr: Input should be greater than 0"),
        ("optimizer.lr", "is not of the form key=value"),
        ("rollout.group_size=1", "'flow_grpo' compares the trajectories of a group"),
        ("rollout.group_size=1", "raise rollout.group_size or set algorithm.name=reinforce"),
        ("tasks.sources=[]", "tasks.sources: at least one is required"),
        ("reward.preset=seed002-3-1", "no reward preset 'seed002-3-1'; did you mean 'seed002-3-"),
        ("reward.components={corectness: 1.0}", "no reward component 'corectness'"),
        ("reward.components={corectness: 1.0}", "did you mean 'correctness'?"),
        ("flow.name=agentflwo", "no agent flow 'agentflwo'"),
        ("flow.name=agentflwo", "did you mean 'agentflow'?"),
        ("flow.name=no_such_module:Agent", "cannot import 'no_such_module.Agent'"),
        ("flow.tools=[calculater]", "unknown tool 'calculater'"),
        ("flow.tools=[calculater]", "did you mean 'calculator'?"),
        ("flow.roles={plannr: {engine: policy}}", "has no such role"),
        ("flow.settings={max_turn: 3}", "flow.settings of 'single_step_single_turn_agent' is not valid"),
        ("flow={name: agentflow, settings: {max_turn: 3}}", "max_turn: unknown key; did you mean 'max_turns'?"),
        ("flow.roles={policy: {engine: magic}}", "use policy, frozen, rules, the URL"),
        ("tasks.sources=[{type: fact}]", "did you mean 'facts'?"),
        ("policy.model=smolm2-135m", "did you mean 'smollm2-135m'?"),
        ("policy.model=./nowhere", "there is no model directory './nowhere'"),
        ("trainer.threads=9999", "trainer.threads is 9999, but this machine has "),
        ("policy.device=cudda", "policy.device 'cudda' cannot be used"),
        ("policy.lora.targets=[z_proj]", "z_proj"),
        ("warm_start.examples=4", "set warm_start.examples=0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(refused: Refused, override: str, message: str) -> None:
    assert message in refused(override)


def test_a_flow_named_as_verl_names_it_is_trained(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "verl_flow.py").write_text(
        "import midstream as ms\n\n\n"
        "class Speaks(ms.AgentFlowBase):\n"
        "    async def run(self, sampling_params, **kwargs):\n"
        "        await self.chat([{'role': 'user', 'content': 'as verl does'}])\n"
        "        return 1\n"
    )
    (config.parent / "flows.yaml").write_text("- name: speaks\n  _target_: verl_flow.Speaks\n")
    agent = "actor_rollout_ref.rollout.agent"
    overrides = [f"{agent}.default_agent_flow=speaks", f"+{agent}.agent_flow_config_path=flows.yaml"]
    assert cli.run(["train", str(config), *overrides, "trainer.run_dir=run"]) == 0, capsys.readouterr().err
    saved = yaml.safe_load((config.parent / "run" / "config.yaml").read_text())
    assert (saved["flow"]["name"], saved["flow"]["flows_file"]) == ("speaks", "flows.yaml")
    with Store(config.parent / "run" / "store.sqlite") as store:
        assert all("as verl does" in str(one.steps[0].messages) for one in store.trajectories.iterate())


def test_all_errors_are_reported_at_once(refused: Refused) -> None:
    message = refused("trainer.max_step=3", "optimizer.lr=fast")
    assert "max_step: unknown key" in message and "optimizer.lr: Input should be a valid number" in message


def test_a_model_that_is_not_causal_is_refused(refused: Refused, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}))
    message = refused(f"policy.model={folder}")
    assert "BertForMaskedLM" in message and "causal" in message


def test_damaged_weights_give_one_line(refused: Refused, tiny_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_path, folder)
    (folder / "model.safetensors").write_bytes(b"half a fi")
    message = refused(f"policy.model={folder}").splitlines()
    assert (
        len(message) == 2
        and f"'{folder}/model.safetensors' is damaged" in message[0]
        and "fetch it again" in message[1]
    )


def test_a_broken_line_of_a_task_file_is_named(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "a?", "answer": "b"}\n{"question": "c?", "ans')
    assert f"{file}, line 2: is not valid JSON" in refused(f"tasks.sources=[{{type: {file}}}]")
    file.write_text('{"question": "a?", "answer": "b"}\n{"question": "", "answer": "b"}\n')
    message = refused(f"tasks.sources=[{{type: {file}}}]")
    assert f"{file}, line 2" in message and "question" in message


def test_eval_accepts_the_field_options_that_its_errors_suggest(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.CSV"
    file.write_text("nr,frage,loesung\n7,a?,b\n")
    command = ["eval", str(config), "--tasks", str(file)]
    for flag, field in (("--question-field", "frage"), ("--answer-field", "loesung")):
        assert cli.run(command) == 2
        assert f"midstream eval {flag} FIELD" in capsys.readouterr().err
        command += [flag, field]
    assert cli.run([*command, "--id-field", "nr", "--out", str(tmp_path / "out.json")]) == 0
    (sample,) = json.loads((tmp_path / "out.json").read_text())["samples"]
    assert (sample["task"], sample["question"], sample["reference"]) == ("7", "a?", "b")
    assert cli.run(["eval", str(config), "--answer-field", "x"]) == 2
    assert "name the task file with --tasks" in capsys.readouterr().err


def test_an_empty_split_is_refused_before_anything_runs(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "a?", "answer": "b", "split": "test"}\n')
    assert "task set 'mine' has no task in split 'train'" in refused(f"tasks.sources=[{{type: {file}}}]")
    file.write_text('{"question": "a?", "answer": "b", "split": "train"}\n')
    message = refused(f"tasks.sources=[{{type: {file}}}]", "trainer.test_tasks=4")
    assert "split 'test'" in message and "trainer.test_tasks=0" in message


def test_a_warm_start_needs_tasks_with_a_demonstration(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "one", "question": "a?", "answer": "b", "split": "train"}\n')
    rules = "flow.roles={analysis: {engine: rules}, executor: {engine: rules}}"
    message = refused(f"tasks.sources=[{{type: {file}}}]", "flow.name=agentflow", rules, "warm_start.examples=1")
    assert "the task 'one' has none" in message and "warm_start.examples=0" in message


def test_an_unwritable_run_directory_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(f"trainer.run_dir={tmp_path}/file/run")
    assert f"cannot write to the run directory '{tmp_path}/file/run'" in message and "trainer.run_dir" in message


def test_two_runs_in_one_directory_are_refused(refused: Refused, tmp_path: Path) -> None:
    from midstream.learn.run.run_dir import RunDirectory

    path = tmp_path / "mine"
    held = RunDirectory(path)
    try:
        assert "another process is using" in refused(f"trainer.run_dir={path}")
    finally:
        held.release()
    path.mkdir()
    (path / "config.yaml").write_text("name: mine\n")
    (path / ".lock").touch()
    assert "there is a run in" in refused(f"trainer.run_dir={path}")


def test_a_prompt_longer_than_the_context_fails_only_its_task(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.jsonl"
    rows = [{"id": "short", "question": "a?", "answer": "b"}, {"id": "long", "question": "a " * 6000, "answer": "b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "result.json"
    code = cli.run(["eval", str(config), "--tasks", str(file), "--out", str(out)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "1 of 2 attempts failed" in printed.out and "leaves no room in a context of 4096" in printed.out
    row = json.loads(out.read_text())
    assert row["n"] == 2 and row["errors"][0]["task"] == "long"
    assert {sample["task"]: sample["status"] for sample in row["samples"]} == {"short": "completed", "long": "failed"}


def test_eval_and_ask_name_missing_input(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        assert cli.run([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    assert "there is no run in 'runs' yet" in error("ask", "What is 1 + 1?")
    assert "no tasks to evaluate on" in error("eval", "--model", "tiny")
    assert "is not a checkpoint" in error("eval", "--checkpoint", tmp_path, "--tasks", "direct")
    assert "both a config and a checkpoint" in error("eval", config, "--checkpoint", tmp_path)
    assert "cannot write" in error("eval", config, "--tasks", "direct", "--out", tmp_path / "no" / "o.json")
    run = tmp_path / "runs" / "half"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": "half", "status": "stopped"}))
    assert "'half', is stopped" in error("ask", "What is 1 + 1?")
    assert "has no checkpoint yet" in error("ask", "What is 1 + 1?", "--run", "half")


def test_a_full_disk_gives_one_message_and_the_run_can_be_resumed(config: Path, tmp_path: Path) -> None:
    # A file size limit acts like a full disk and needs no privileges: adapters are below this limit, the state of their
    # optimizer is above it.
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); "
    script = limited + "from midstream import cli; cli.main(sys.argv[1:])"
    command = ["train", str(config), f"trainer.run_dir={tmp_path}/run", "trainer.max_steps=2"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "resume" in done.stderr
    assert cli.run([*command, "--resume"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


def test_a_run_that_would_train_nothing_is_refused(refused: Refused) -> None:
    message = refused("flow.roles={policy: {train: false}}")
    assert "no role of the flow" in message and "train: true" in message


def test_training_reports_why_attempts_fail(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "broken_flow.py").write_text(
        "import midstream as ms\n\n\n"
        "class Broken(ms.AgentFlowBase):\n"
        "    async def run(self, sampling_params, **kwargs):\n"
        "        return undefined\n"
    )
    assert cli.run(["train", str(config), "flow.name=broken_flow:Broken", "trainer.test_tasks=2"]) == 1
    out, err = capsys.readouterr()
    assert "2 attempts failed: NameError" in out and out.count("    return undefined") == 1
    assert "step 1: 4 of 4 attempts failed (agent)" in err and "NameError: name 'undefined' is not defined" in err


@pytest.mark.parametrize("name", ["/absolute", "../up", "", "a/b"])
def test_a_run_name_that_is_not_a_file_name_is_refused(refused: Refused, name: str) -> None:
    assert "name:" in refused(f"name={name!r}")
