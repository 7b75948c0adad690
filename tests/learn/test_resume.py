"""A run that is killed, stopped or crowded out goes on to the numbers it would have had."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from midstream import cli
from midstream.core.errors import RunError
from midstream.evaluate.agreement import contents
from midstream.learn.config import TrainConfig
from midstream.learn.run.run_dir import RunDirectory, run_path
from midstream.learn.run.trainer import train

# Forked from a process that has imported torch and computed nothing: real processes, without seconds of start-up each.
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(
    [
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "midstream.learn.run.trainer",
        "midstream.agents.agentflow.flow",
        "peft",
        "torch.utils.tensorboard",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.configuration_llama",
        "transformers.tokenization_utils_tokenizers",
    ]
)
KILLS = 3

# Seconds on an idle machine; a dozen processes that share theirs with other work may take minutes.
pytestmark = pytest.mark.timeout(600)

Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose modules this process and those it starts can import; a reward with something to learn is there."""
    path = tmp_path_factory.mktemp("resume")
    (path / "letters_reward.py").write_text(
        "def letters(steps):\n"
        "    text = ''.join(step.text for step in steps)\n"
        "    return sum(c.islower() for c in text) / max(len(text), 1)\n"
    )
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


@pytest.fixture(scope="module")
def configure(folder: Path, tiny_path: Path) -> Configure:
    """Configs of a short run with everything that must come back after a kill: warm start, reference, evaluations,
    pools of tasks, a replay buffer, running statistics of the reward."""
    rules = {"engine": "rules"}
    roles = {"analysis": rules, "executor": rules, "verifier": rules, "planner": {"sampling": {"max_tokens": 5}}}

    def make(name: str, **trainer: Any) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "name": "resumed",
                "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2, "alpha": 4}},
                "tasks": {
                    "sources": [{"type": "calculate"}, {"type": "direct"}],
                    "curriculum": {"name": "pools", "hard": 0.3, "normal": 0.3, "easy": 0.2},
                },
                "flow": {
                    "name": "agentflow",
                    "tools": ["calculator"],
                    "roles": roles,
                    "settings": {"notation": "compact", "fields": [], "max_turns": 2},
                },
                "reward": {
                    "components": {"letters_reward:letters": 1.0},
                    "success": "letters_reward:letters",
                    "success_at": 0.8,
                    "normalize": "running",
                },
                "rollout": {
                    "tasks_per_step": 3,
                    "group_size": 3,
                    "sampling": {"max_tokens": 3},
                    "max_staleness": 3,
                    "replay": {"capacity": 12, "share": 0.34, "sampling": "prioritised"},
                },
                "algorithm": {"name": "flow_grpo", "kl": {"coef": 0.01, "reference": "start"}},
                "optimizer": {"lr": 0.01},
                "warm_start": {"examples": 4, "epochs": 1, "batch_size": 2},
                "trainer": {
                    "run_dir": str(folder / name),
                    "deterministic": True,
                    "threads": 1,
                    "max_steps": 6,
                    "save_every": 2,
                    "eval_every": 3,
                    "val_tasks": 3,
                    "test_tasks": 3,
                    **trainer,
                },
            }
        )

    return make


@pytest.fixture(scope="module")
def uninterrupted(configure: Configure) -> tuple[Path, float]:
    """A run nobody disturbed, and how long it took."""
    config = configure("uninterrupted")
    idle = SPAWN.Process(target=int)  # the process that others are forked from imports what they need only once
    idle.start()
    idle.join()
    began = time.monotonic()
    assert finish(config) == 0
    return run_dir(config), time.monotonic() - began


def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(
    configure: Configure, uninterrupted: tuple[Path, float]
) -> None:
    reference, takes_s = uninterrupted
    config = configure("killed")
    moments = random.Random(7)
    killed = 0
    for _ in range(KILLS):
        process = start(config)
        process.join(moments.uniform(0.05, 0.5) * takes_s)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= KILLS - 1
    assert finish(config) == 0
    assert contents(run_dir(config)) == contents(reference)


def test_the_run_of_this_test_learns_something(uninterrupted: tuple[Path, float]) -> None:
    # Else equal outcomes would say little.
    path, _ = uninterrupted
    rows = [row for row in logged(path / "metrics.jsonl") if row["stage"] == "rl"]
    assert len(rows) == 6 and all(row["grad_norm"] > 0 for row in rows)
    assert len({row["reward"] for row in rows}) > 1
    assert sum(row["replayed_groups"] for row in rows) >= 3 and sum(row["stale_groups"] for row in rows) >= 1
    assert rows[-1]["pool/hard"] + rows[-1]["pool/normal"] + rows[-1]["pool/easy"] >= 3
    assert [row["label"] for row in logged(path / "evals.jsonl")] == [
        "base",
        "warm start",
        "step 0",
        "step 3",
        "step 6",
        "final",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_stop_and_resume_ends_the_same(
    configure: Configure, uninterrupted: tuple[Path, float], folder: Path, number: signal.Signals
) -> None:
    config = configure(f"stopped by {number.name}")
    file, path = folder / f"{number.name}.yaml", run_dir(config)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = SPAWN.Process(target=cli.main, args=(["train", str(file)],))
    process.start()
    while not (path / "metrics.jsonl").exists() or '"step": 3' not in (path / "metrics.jsonl").read_text():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(RunError, match="another process is using"):
        train(config, resume=True)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == cli.INTERRUPTED == 130
    assert json.loads((path / "run.json").read_text())["status"] == "stopped"
    assert (path / "curve.png").is_file() and (path / "report.html").is_file()
    steps = [row["step"] for row in logged(path / "metrics.jsonl")]
    assert (path / "checkpoints" / f"step-{steps[-1]:06d}" / "state.json").is_file() and steps[-1] < 6
    assert finish(config) == 0
    assert contents(path) == contents(uninterrupted[0])


def test_a_changed_config_is_refused_with_the_difference_and_taken_with_force(
    configure: Configure, uninterrupted: tuple[Path, float]
) -> None:
    path, _ = uninterrupted
    longer = configure("uninterrupted", max_steps=7)
    before = (path / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"trainer\.max_steps: 6 -> 7"):
        train(longer, resume=True)
    assert (path / "config.yaml").read_bytes() == before


def test_a_run_that_kept_no_start_policy_cannot_go_on_with_one_as_reference(configure: Configure) -> None:
    data = configure("unreferenced", max_steps=1).model_dump(mode="json")
    data["algorithm"]["kl"]["reference"] = "base"
    plain = TrainConfig.model_validate(data)
    assert finish(plain) == 0
    with pytest.raises(RunError, match=r"has no copy of its starting policy"):
        train(configure("unreferenced", max_steps=2), resume=True, force=True)


def test_resume_takes_the_run_of_its_own_name(configure: Configure, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("own", "own-2", "own-other", "own_tasks")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
        os.utime(tmp_path / "runs" / name, (number, number))
    config = configure("unused").model_copy(update={"name": "own"})
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"run_dir": None})})
    assert run_path(config, resume=True) == Path("runs/own-2")
    assert run_path(config, resume=False) == Path("runs/own-3")


def test_a_log_gives_back_every_character_it_was_given(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    row = {"text": "one\u2028two\u0085three\n\ud800"}
    directory.append("samples.jsonl", row)
    directory.filter_log("samples.jsonl", lambda _: True)
    assert list(directory.rows("samples.jsonl")) == [row]
    directory.release()


def test_force_goes_on_under_the_new_config(configure: Configure) -> None:
    assert finish(configure("forced", max_steps=1)) == 0
    assert [row["step"] for row in logged(run_dir(configure("forced")) / "evals.jsonl")][-1] == 1
    longer = configure("forced", max_steps=2)
    assert finish(longer, force=True) == 0
    finals = [row for row in logged(run_dir(longer) / "evals.jsonl") if row["label"] == "final"]
    samples = [row for row in logged(run_dir(longer) / "samples.jsonl") if row["label"] == "final"]
    assert [row["step"] for row in finals] == [2] and {row["step"] for row in samples} == {2}
    rows = logged(run_dir(longer) / "metrics.jsonl")
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [1, 2]
    assert yaml.safe_load((run_dir(longer) / "config.yaml").read_text())["trainer"]["max_steps"] == 2


def test_a_directory_with_a_run_in_it_is_refused(configure: Configure, uninterrupted: tuple[Path, float]) -> None:
    before = contents(uninterrupted[0])
    with pytest.raises(RunError, match=r"there is a run in .* already"):
        train(configure("uninterrupted"))
    assert contents(uninterrupted[0]) == before


def test_a_run_that_cannot_begin_leaves_no_directory(configure: Configure, folder: Path) -> None:
    config = configure("nested/never")
    with pytest.raises(RunError, match="another process"):
        held = RunDirectory(run_dir(config))
        try:
            train(config)
        finally:
            held.release()
    missing = config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(folder / "no-model")})})
    with pytest.raises(Exception, match="no model directory"):
        train(missing)
    assert not (folder / "nested").exists()


def run_dir(config: TrainConfig) -> Path:
    assert config.trainer.run_dir is not None
    return Path(config.trainer.run_dir)


def start(config: TrainConfig, force: bool = False) -> Any:
    """A process that begins the run, or goes on with it."""
    process = SPAWN.Process(target=train, args=(config,), kwargs={"resume": True, "force": force})
    process.start()
    return process


def finish(config: TrainConfig, force: bool = False) -> int | None:
    process = start(config, force)
    process.join()
    return process.exitcode


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
