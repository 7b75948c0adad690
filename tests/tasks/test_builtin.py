"""Every built-in task is solved by its demonstration with the real tools, and splits share no subject."""

import asyncio
from collections import Counter

import pytest

from midstream.tasks import SPLITS, TasksConfig, TaskSourceConfig, check, load_tasks, split_of, take
from midstream.tasks.facts import facts
from midstream.tasks.geography import countries
from midstream.tools import Toolbox, load_tools

NAMES = ("calculate", "facts", "facts_calculate", "two_hop", "compare", "direct")
NEEDS = {
    "calculate": ["calculator"],
    "facts": ["search"],
    "facts_calculate": ["search", "calculator"],
    "two_hop": ["search", "search"],
    "compare": ["search", "search"],
    "direct": [],
}


def load(name, seed=0):
    return load_tasks(TasksConfig(sources=[TaskSourceConfig(type=name)], seed=seed))


async def solve(task, session):
    """Execute a task's demonstration; return the values its calls found, in order."""
    values = []
    for step in task.metadata["demonstration"]:
        arguments = dict(step["arguments"])
        for name, argument in arguments.items():
            for number, value in enumerate(values, start=1):
                argument = argument.replace(f"{{{number}}}", value)
            arguments[name] = argument
        done = await session.call(step["tool"], arguments)
        assert done.ok, (task.question, arguments, done.result)
        found = done.result
        if step["tool"] == "search":
            found = found.partition(" is ")[2].removesuffix(".").removesuffix(" km2")
        values.append(found)
    return values


def answer_from(task, values):
    if task.kind == "compare":
        choose = max if task.metadata["pick"] == "larger" else min
        by_value = dict(zip(task.metadata["entities"], map(int, values), strict=True))
        return choose(by_value, key=lambda entity: by_value[entity])
    return values[-1]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "direct"])
def test_the_demonstration_finds_the_answer(name):
    taskset = load(name, seed=7)
    tasks = [task for split in SPLITS for task in take(taskset, split, 300 if split == "train" else 100)]
    assert len(tasks) > 400
    session = Toolbox(load_tools(["calculator", "search"])).session()

    async def run():
        for task in tasks:
            found = answer_from(task, await solve(task, session))
            accepted = task.answer if isinstance(task.answer, list) else [task.answer]
            assert found in accepted, (task.question, found, accepted)

    asyncio.run(run())


@pytest.mark.parametrize("name", NAMES)
def test_tasks_are_well_formed(name):
    taskset = load(name)
    check(taskset)
    assert taskset.kinds == (name,)
    for split in SPLITS:
        tasks = take(taskset, split, 400)
        assert len({task.id for task in tasks}) == len(tasks)
        for task in tasks:
            assert (task.kind, task.split) == (name, split)
            assert task.metadata["needs"] == NEEDS[name]
            assert task.metadata["entity"]
            assert len(task.question.split()) <= 20, task.question
            assert "{" not in task.question and "  " not in task.question
            assert task.answer


@pytest.mark.parametrize("name", NAMES)
def test_the_same_index_gives_the_same_task_and_seeds_differ(name):
    one, same, other = load(name, 1), load(name, 1), load(name, 2)
    indices = [5, 0, 17, 3]
    questions = [one.get("train", index).question for index in indices]
    assert questions == [same.get("train", index).question for index in reversed(indices)][::-1]
    assert questions != [other.get("train", index).question for index in indices]


def test_countries_of_a_test_split_never_occur_in_train():
    by_name = {country.name: country for country in countries()}
    asked = {split: set() for split in SPLITS}
    for split in SPLITS:
        for name in ("facts", "facts_calculate", "compare"):
            for task in take(load(name), split, 500):
                asked[split].update(task.metadata.get("entities", [task.metadata["entity"]]))
        assert asked[split] <= set(by_name)
        assert all(split_of(f"country/{by_name[name].code}") == split for name in asked[split])
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["val"]
    assert len(asked["test"]) >= 10


def test_operands_of_a_test_split_never_occur_in_train():
    def operands(split):
        return {frozenset(task.metadata["entity"].split()[::2]) for task in take(load("calculate"), split, 3000)}

    assert not operands("train") & operands("test")


def test_arithmetic_covers_every_operation_and_form():
    tasks = take(load("calculate"), "train", 1000)
    operators = Counter(task.metadata["entity"].split()[1] for task in tasks)
    assert set(operators) == {"+", "-", "*", "/"} and min(operators.values()) > 150
    assert all(task.answer.isdigit() for task in tasks)


def test_known_facts():
    tasks = {task.question: task for split in SPLITS for task in take(facts(), split, 10_000)}
    assert tasks["What is the capital of Peru?"].answer == "Lima"
    assert tasks["What is the area of Peru in km2?"].answer == "1285220"
    assert tasks["Which currency does Peru use?"].answer == ["Sol", "PEN"]
    assert tasks["Which continent is the Netherlands in?"].answer == "Europe"
    assert not any("Antarctica" in question for question in tasks)
    assert "What is the capital of Singapore?" not in tasks
