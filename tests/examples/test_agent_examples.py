"""The customer-service, news-alert and recommender agents of `examples/`, with scripted models."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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
    return json.dumps({"steps": [{"id": f"s{place}", **json.loads(one)} for place, one in enumerate(calls)]})


def service(module: ModuleType, task: Task) -> str:
    topic = next(topic for topic, text in module.TEXTS.items() if text == task.answer)
    return call("pass_on") if topic == "person" else call("answer_with", topic=topic)


def news(module: ModuleType, task: Task) -> str:
    filed = call("file_as", sentiment=task.answer.removeprefix("alert: "))
    return plan(filed, call("alert", sentiment="{s0}")) if task.answer.startswith("alert") else plan(filed)


def books(module: ModuleType, task: Task) -> str:
    return call("recommend", title=task.answer[0])


RIGHT = {"customer_service": service, "news_alert": news, "recommender": books}
WRONG = {
    "customer_service": call("answer_with", topic="invoice"),
    "news_alert": "no plan",
    "recommender": call("about", title="Tides"),
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
    tasks = {task.id: task for task in tasks_of(example, "test", 6)}
    right = {uid: RIGHT[example.__name__](example, task) for uid, task in tasks.items()}
    for made, task in zip(attempted(example, tasks, right, tiny_tokenizer), tasks.values(), strict=True):
        assert reward_of(example, task, made) > 0.9, (made.answer, task.answer)
    wrong = dict.fromkeys(tasks, WRONG[example.__name__])
    for made, task in zip(attempted(example, tasks, wrong, tiny_tokenizer), tasks.values(), strict=True):
        assert reward_of(example, task, made) <= 0.3


def tasks_of(module: ModuleType, split: str, most: int) -> list[Task]:
    """Tasks of the example's own task set."""
    (source,) = ms.load_config(module.training()).tasks.sources
    return take(getattr(module, source.type)(0), split, most)


def test_it_is_short_and_its_splits_do_not_overlap(example: ModuleType) -> None:
    assert len((EXAMPLES / f"{example.__name__}.py").read_text().splitlines()) < 80
    prompts = {split: {task.prompt for task in tasks_of(example, split, 100)} for split in ("train", "test")}
    assert prompts["test"] and prompts["train"] and not prompts["test"] & prompts["train"]
