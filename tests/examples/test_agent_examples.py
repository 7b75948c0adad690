"""The customer-service, news-alert and recommender agents of `examples/`, with scripted models."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarks.agent_examples import MARKS, Result, publish

import midstream as ms
from midstream.core.types import Task, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rewards import RewardFunction
from midstream.tasks.taskset import take

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("customer_service", "news_alert", "recommender")


def call(tool: str, **args: Any) -> str:
    return json.dumps({"tool": tool, "args": args})


def plan(*calls: str) -> str:
    return json.dumps({"steps": [json.loads(one) for one in calls]})


def service(module: ModuleType, task: Task) -> str:
    topic = next(topic for topic, text in module.TEXTS.items() if text == task.answer)
    return call("pass_on") if topic == "person" else call("answer_with", topic=topic)


def news(module: ModuleType, task: Task) -> str:
    filed = call("file_as", sentiment=task.answer)
    return plan(filed, call("alert")) if task.answer == "bad" else plan(filed)


def books(module: ModuleType, task: Task) -> str:
    return call("recommend", title=task.answer[0])


RIGHT = {"customer_service": service, "news_alert": news, "recommender": books}
WRONG = {
    "customer_service": call("answer_with", topic="invoice"),
    "news_alert": "no plan",
    "recommender": call("recommend", title="Waves"),
}


@pytest.fixture(params=NAMES)
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


def attempted(
    module: ModuleType, tasks: Mapping[str, Task], replies: Mapping[str, str], tokenizer: ChatTokenizer
) -> list[Trajectory]:
    def says(request: Request) -> str:
        return replies[request.session]

    engine = RoleEngine(ScriptedEngine(tokenizer, says), tokenizer, True)
    goals = {uid: str(task.prompt) for uid, task in tasks.items()}
    return asyncio.run(module.agent(engine).run_all(goals))


def reward_of(module: ModuleType, task: Task, made: Trajectory) -> float:
    config = ms.load_config(module.training())
    scored = asyncio.run(RewardFunction(config.reward).score(replace(made, task=task)))
    assert scored.reward is not None
    return scored.reward


def test_the_right_decisions_are_rewarded_and_wrong_ones_are_not(
    example: ModuleType, tiny_tokenizer: ChatTokenizer
) -> None:
    tasks = {task.id: task for task in tasks_of(example, "test", 12)}
    right = {uid: RIGHT[example.__name__](example, task) for uid, task in tasks.items()}
    for made, task in zip(attempted(example, tasks, right, tiny_tokenizer), tasks.values(), strict=True):
        assert reward_of(example, task, made) > 0.9, (made.answer, task.answer)
    wrong = dict.fromkeys(tasks, WRONG[example.__name__])
    for made, task in zip(attempted(example, tasks, wrong, tiny_tokenizer), tasks.values(), strict=True):
        assert reward_of(example, task, made) == 0.0


def test_half_of_the_right_plan_is_rewarded_by_half(
    monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: ChatTokenizer
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("news_alert")
    tasks = {task.answer: task for task in tasks_of(example, "test", 12)}
    filed = {sentiment: call("file_as", sentiment=sentiment) for sentiment in tasks}
    wrong = {"bad": plan(filed["bad"]), "good": plan(filed["good"], call("alert")), "neutral": plan(call("alert"))}
    rewards = [
        reward_of(example, tasks[sentiment], made)
        for sentiment, made in zip(tasks, attempted(example, tasks, wrong, tiny_tokenizer), strict=True)
    ]
    assert dict(zip(tasks, rewards, strict=True)) == {"bad": 0.5, "good": 0.5, "neutral": 0.0}


def tasks_of(module: ModuleType, split: str, most: int) -> list[Task]:
    """Tasks of the example's own task set."""
    (source,) = ms.load_config(module.training()).tasks.sources
    return take(getattr(module, source.type)(0), split, most)


def test_it_is_short_and_what_is_held_out_occurs_in_no_training_task_and_no_example(example: ModuleType) -> None:
    assert len((EXAMPLES / f"{example.__name__}.py").read_text().splitlines()) < 100
    tasks = {split: tasks_of(example, split, 500) for split in ("train", "val", "test")}
    about = {split: {task.metadata["about"] for task in these} for split, these in tasks.items()}
    assert len(tasks["test"]) == 48
    for one, other in combinations(about, 2):
        assert not about[one] & about[other]
    seen = " ".join([str(getattr(example, "EXAMPLES", "")), *(str(task.prompt) for task in tasks["train"])])
    assert not [name for name in about["test"] if f" {name} " in seen]


def test_it_trains_an_adapter_and_evaluates_before_and_after(example: ModuleType, tmp_path: Path) -> None:
    config = ms.load_config(example.training())
    assert config.policy.model == "smollm2-135m" and config.policy.tuning == "lora"
    small = ["policy.model=tiny", "policy.lora.last_layers=1", "rollout.tasks_per_step=2", "rollout.group_size=2"]
    steps = ["trainer.max_steps=1", "trainer.test_tasks=2", f"trainer.run_dir={tmp_path / 'run'}"]
    assert ms.train(ms.load_config(example.training(), [*small, *steps])).status == "finished"
    evals = [json.loads(line) for line in (tmp_path / "run" / "evals.jsonl").read_text().splitlines()]
    assert [(row["label"], row["split"], row["n"], row["failed"]) for row in evals] == [
        ("base", "test", 2, 0.0),
        ("final", "test", 2, 0.0),
    ]


def test_the_table_of_the_examples_compares_before_and_after_by_task() -> None:
    before, after = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0}
    scores = {"base": before, "final": after, "swapped": {task: 1.0 - value for task, value in before.items()}}
    alike = Result(scores, {"a": "x", "b": "x", "c": "y", "d": "y"}, 90.0)
    assert alike.difference("base", "final") == (0.0, 1.0)
    assert Result(scores, dict.fromkeys("abcd", "x"), 90.0).difference("base", "swapped") == (0.0, 0.0)
    cells = [
        "`one.py`",
        "4 about 2 things",
        "0.50 (0.15-0.85)",
        "1.00 (0.51-1.00)",
        "+0.50 (+0.00 to +1.00)",
        "1.5 min",
    ]
    assert alike.row("one", ["base", "final"]) == f"| {' | '.join(cells)} |"


def test_publishing_a_table_keeps_the_rows_of_examples_that_were_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    table = "| example | base |\n| --- | --- |\n"
    page.write_text(f"before\n{MARKS[0]}\n\n{table}| `b.py` | 0.1 |\n| `c.py` | 0.2 |\n\n{MARKS[1]}\nafter\n")
    publish(page, f"{table}| `c.py` | 0.3 |\n| `a.py` | 0.4 |")
    rows = "| `a.py` | 0.4 |\n| `b.py` | 0.1 |\n| `c.py` | 0.3 |"
    written = f"before\n{MARKS[0]}\n\n{table}{rows}\n\n{MARKS[1]}\nafter\n"
    assert page.read_text() == written
    with pytest.raises(SystemExit, match="other columns"):
        publish(page, "| example | final |\n| --- | --- |\n| `c.py` | 0.5 |")
    assert page.read_text() == written
