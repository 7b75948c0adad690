"""A warm start for a policy that writes workflows, with the task set and the simulated executor to try it on."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from typing import Any

import pytest

import midstream.api  # noqa: F401  offers the flow by its name
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.types import Task
from midstream.engines.chat import ChatTokenizer
from midstream.learn.config import TrainConfig
from midstream.learn.run.setup import TrainingContext, build
from midstream.learn.run.warm_start import check_warm_start, demonstrate
from midstream.tasks import TasksConfig, TaskSourceConfig, assorted, load_tasks, split_of, take
from midstream.tasks.varied import SORTS, find_problem
from midstream.workflows import OPERATORS, EngineModel, ScriptedModel, WorkflowRunner, read_workflow
from midstream.workflows.checker import check_text
from midstream.workflows.demonstrate import SHAPES
from midstream.workflows.operators import AFLOW_SETS
from midstream.workflows.passages import open_passages
from midstream.workflows.search.evaluation import WorkflowEvaluator
from midstream.workflows.simulated import executor, reply


def varied() -> Any:
    return load_tasks(TasksConfig(sources=[TaskSourceConfig(type="varied")]))


def context(tasks: str = "varied", **warm_start: Any) -> TrainingContext:
    config = {
        "policy": {"model": "tiny", "tuning": "full"},
        "tasks": {"sources": [{"type": tasks}]},
        "flow": {
            "name": "workflow_writer",
            "roles": {"executor": {"engine": "midstream.workflows.simulated:executor", "train": False}},
            "settings": {"operators": ["Custom", "Programmer", "ScEnsemble", "Review", "Revise"], "guide": ""},
        },
        "reward": {"preset": "workflow"},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "warm_start": {"examples": 8, **warm_start},
    }
    return build(parse_config(TrainConfig, config, "the config"))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_a_workflow_without_warnings(shape: str) -> None:
    for seed in range(4):
        checked = check_text(SHAPES[shape].text(random.Random(seed)), OPERATORS, None, ("",))
        assert checked.ok and not checked.problems


def test_demonstrations_are_run_by_the_flow_and_show_the_shape_that_suits_the_task() -> None:
    made = context()
    check_warm_start(made)
    shown = asyncio.run(demonstrate(made))
    assert len(shown) == 8
    for one in shown:
        assert [step.role for step in one.steps if step.trainable] == ["policy"]
        text = made.tokenizer.text_of(next(step for step in one.steps if step.trainable).response_ids)
        workflow = read_workflow(text)
        suited = read_workflow(SHAPES[one.task.metadata["workflow"]].text(random.Random(0)))
        assert [one.operator for one in workflow.instances] == [one.operator for one in suited.instances]


def test_a_share_of_the_demonstrations_shows_another_shape() -> None:
    made = context(wrong=1.0)
    for one in asyncio.run(demonstrate(made)):
        text = made.tokenizer.text_of(next(step for step in one.steps if step.trainable).response_ids)
        suited = SHAPES[one.task.metadata["workflow"]]
        assert text not in {suited.text(random.Random(seed)) for seed in range(50)}
        assert check_text(text, OPERATORS, None, ("",)).ok


def test_tasks_without_a_named_shape_get_one_by_their_kind() -> None:
    made = context("calculate")
    shown = asyncio.run(demonstrate(made))
    assert all("operator." in made.tokenizer.text_of(one.steps[0].response_ids) for one in shown)


def test_a_demonstration_that_is_no_workflow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = context()
    task = Task(id="t1", prompt="p", metadata={"workflow": "class Workflow: pass"})
    monkeypatch.setattr("midstream.learn.run.warm_start._tasks", lambda context: [task])
    with pytest.raises(ConfigError, match="demonstration of the task 't1' is not a workflow"):
        check_warm_start(made)


@pytest.mark.parametrize(("shape", "sort"), [("lookup", "fact"), ("direct", "reading")])
def test_a_constant_workflow_solves_one_sort_of_assorted(shape: str, sort: str) -> None:
    tasks = take(load_tasks(TasksConfig(sources=[TaskSourceConfig(type="assorted")])), "val", 48)

    def reads(asked: str) -> str:
        counted = re.search(r"counted (\d+)", asked)
        return "I do not know." if counted is None else counted[1]

    async def scores() -> dict[str, float]:
        model = ScriptedModel(lambda messages, sampling: reads(messages[-1]["content"]))
        async with WorkflowRunner(model, search=open_passages("facts")) as runner:
            workflow = read_workflow(SHAPES[shape].text(random.Random(0)))
            return (await WorkflowEvaluator(runner, tasks).evaluate(workflow)).by_task

    found = asyncio.run(scores())
    solved = {str(task.metadata["sort"]) for task in tasks if found[task.id] == 1}
    assert solved == {sort} and {task.metadata["sort"] for task in tasks} == set(assorted.SORTS)
    assert all(found[task.id] == 1 for task in tasks if task.metadata["sort"] == sort)
    assert all(SHAPES[task.metadata["workflow"]] for task in tasks)


def test_the_set_has_four_sorts_with_answers_and_keeps_its_splits_apart() -> None:
    tasks = varied()
    drawn = {split: take(tasks, split, 200) for split in ("train", "val", "test")}
    counts = Counter(task.metadata["sort"] for task in drawn["train"])
    assert set(counts) == set(SORTS) and min(counts.values()) > 30
    for split, members in drawn.items():
        for task in members:
            found = find_problem(task.question)
            assert found is not None and found.answer == task.answer and found.sort == task.metadata["sort"]
            assert split_of(f"varied/{task.metadata['entity']}") == split
    assert not {task.question for task in drawn["train"]} & {task.question for task in drawn["test"]}


def test_each_sort_is_solved_best_by_its_own_shape(tiny_tokenizer: ChatTokenizer) -> None:
    tasks = take(varied(), "val", 32)
    names = ("direct", "steps", "program", "vote")

    async def scores() -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        async with WorkflowRunner(EngineModel(executor(tiny_tokenizer), tiny_tokenizer)) as runner:
            for name in names:
                workflow = read_workflow(SHAPES[name].text(random.Random(1)))
                by_task = (await WorkflowEvaluator(runner, tasks).evaluate(workflow)).by_task
                for sort in SORTS:
                    scored = [by_task[task.id] for task in tasks if task.metadata["sort"] == sort]
                    found.setdefault(sort, {})[name] = sum(scored) / len(scored)
        return found

    found = asyncio.run(scores())
    assert all(found["recall"][name] == 1 for name in names)
    assert found["steps"]["steps"] > max(found["steps"]["direct"], found["steps"]["program"])
    assert found["product"]["program"] == 1 and found["product"]["vote"] == 0
    assert found["odd"]["vote"] > max(found["odd"]["direct"], found["odd"]["program"])


def test_the_simulated_executor_repeats_itself_for_equal_seeds_only() -> None:
    question = "Which word does not belong: pear, hammer, plum, apple?"
    assert reply(question, 3) == reply(question, 3)
    assert len({reply(question, seed) for seed in range(30)}) > 1
    assert reply("What is the meaning of life?", 1) == "I do not know."


def test_code_tasks_get_code_that_is_tested() -> None:
    operators = OPERATORS.only(AFLOW_SETS["code"])
    assert check_text(SHAPES["tested"].text(random.Random(0)), operators, None, ("",)).ok
