"""The exercises on several agents: a manager with a writer, a ring of peers, and a team that runs code."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import midstream as ms
from midstream.agents.registry import find_flow
from midstream.core.config import parse_config
from midstream.core.types import Task
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.tasks import load_tasks
from midstream.tasks.taskset import take
from midstream.tools import Toolbox

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_manager_gives_each_question_to_whom_it_suits() -> None:
    assert printed("manager") == [
        "Calculate 2 + 3: calculator (succeeded): 5",
        "Search the capital of Peru: searcher (succeeded): The capital of Peru is Lima.",
        "Write a summary about the capital of Peru: searcher (succeeded), writer (succeeded): "
        "In short: The capital of Peru is Lima.",
    ]


def test_the_ring_goes_round_until_the_proofreader_is_content() -> None:
    lines = printed("peers")
    assert lines[0] == "researcher -> summariser: The capital of Peru is Lima."
    assert [line.partition(" ->")[0] for line in lines[:-1]] == [
        "researcher",
        "summariser",
        "proofreader",
        "researcher",
        "summariser",
    ]
    assert lines[-1] == "answered: Peru's capital is Lima."


def test_the_team_looks_up_runs_code_and_writes() -> None:
    lines = printed("research_team")
    assert lines[2] == "code_executor: python {'code': 'print(round(1285220 / 756950, 2))'} -> 1.7"
    assert lines[-2:] == [
        "text (summariser, succeeded): Peru is 1.7 times as large as Chile.",
        "answered: Peru is 1.7 times as large as Chile.",
    ]


@pytest.mark.parametrize("name", ["manager", "peers", "research_team", "trip"])
def test_an_unknown_argument_is_refused(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--trian"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage:") and "--trian" in done.stderr


@pytest.fixture(params=["manager", "peers", "research_team"])
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


def test_they_are_short_and_their_splits_do_not_overlap(example: ModuleType) -> None:
    assert len((EXAMPLES / f"{example.__name__}.py").read_text().splitlines()) <= 115
    tasks = {split: tasks_of(example, split) for split in ("train", "test")}
    prompts = {split: {task.prompt for task in own} for split, own in tasks.items()}
    assert prompts["train"] and len(prompts["test"]) >= 40 and not prompts["train"] & prompts["test"]


def tasks_of(module: ModuleType, split: str) -> list[Task]:
    """All tasks of the example's own task set."""
    taskset = load_tasks(ms.load_config(module.training()).tasks)
    return take(taskset, split, taskset.size(split) or 0)


def careless(module: ModuleType, n: int) -> bool:
    """Whether the demonstration of task `n` is careless: two thirds of the peers', a third of the others'."""
    return (n % 3 > 0) if module.__name__ == "peers" else (n % 3 == 0)


def test_right_demonstrations_are_rewarded_and_careless_ones_less(
    example: ModuleType, tiny_tokenizer: ChatTokenizer
) -> None:
    config = ms.load_config(example.training())
    flow = find_flow(config.flow.name)
    settings = parse_config(flow.settings, config.flow.settings, "flow.settings")
    engine: Any = flow.demonstrator(settings, tiny_tokenizer, Toolbox([]), wrong=0.0, seed=0)
    tasks = {task.id: task for task in tasks_of(example, "train")[:18]}
    engine.assign(tasks, {})
    worker = AgentFlowWorker(
        config.flow, {"policy": RoleEngine(engine, tiny_tokenizer, True)}, sampling=config.rollout.sampling
    )
    rewards: dict[bool, list[float | None]] = {True: [], False: []}
    for uid, task in tasks.items():
        engine.check(task)
        made = asyncio.run(worker.run(Attempt(task=task, uid=uid, prompt_uid=uid, seed=0)))
        assert made.answer is not None and all(call.ok for call in made.tool_calls), made.error
        scored = asyncio.run(RewardFunction(config.reward).score(made))
        rewards[careless(example, int(uid.rpartition("-")[2]))].append(scored.reward)
    assert rewards[False] and set(rewards[False]) == {1.0}
    assert rewards[True] and all(reward is not None and reward < 1 for reward in rewards[True])


def test_a_training_step_trains_every_role_and_evaluates_before_and_after(example: ModuleType, tmp_path: Path) -> None:
    config = ms.load_config(example.training())
    assert config.policy.model == "smollm2-135m" and config.policy.tuning == "lora"
    small = ["policy.model=tiny", "policy.lora.last_layers=1", "rollout.tasks_per_step=2", "rollout.group_size=2"]
    steps = ["warm_start.examples=12", "trainer.max_steps=1", "trainer.test_tasks=2", f"trainer.run_dir={tmp_path}"]
    assert ms.train(ms.load_config(example.training(), [*small, *steps])).status == "finished"
    evals = [json.loads(line) for line in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert [(row["label"], row["split"], row["n"], row["failed"]) for row in evals] == [
        ("base", "test", 2, 0.0),
        ("warm start", "test", 2, 0.0),
        ("final", "test", 2, 0.0),
    ]
    flow = find_flow(config.flow.name)
    roles = flow.roles_for(parse_config(flow.settings, config.flow.settings, "flow.settings"))
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        made = list(store.trajectories.iterate(channel="train"))
    sampled = [step for one in made for step in one.steps]
    assert len(made) == 4 and all(step.trainable and step.response_ids for step in sampled)
    assert {step.role for step in sampled} <= set(roles) and {one.steps[0].role for one in made} == {roles[0]}
    bound = [one.steps[0] for one in made] + [step for step in sampled if step.role == "manager"]
    assert all(step.constraint is not None for step in bound)
