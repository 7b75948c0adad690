"""`programs`: functions to write, with public and hidden tests that a right function passes."""

from __future__ import annotations

import json
from pathlib import Path

from midstream.tasks import TasksConfig, load_tasks
from midstream.tasks.load import TaskSourceConfig
from midstream.tasks.taskset import take


def test_hidden_tests_are_in_the_answer_only_and_names_do_not_cross_splits() -> None:
    tasks = load_tasks(TasksConfig(sources=[TaskSourceConfig(type="programs")]))
    by_split = {split: take(tasks, split, 60) for split in ("train", "test")}
    for task in by_split["train"]:
        name = task.metadata["entry_point"]
        assert f"{name}(x)" in task.question and task.answer["entry_point"] == name
        assert len(task.answer["tests"]) == 5 and len(task.metadata["public_tests"]) == 2
        assert all(f"assert {name}(" in test for test in task.answer["tests"])
        assert not any(test in task.question for test in task.answer["tests"])
    names = {split: {task.metadata["entry_point"] for task in members} for split, members in by_split.items()}
    assert not names["train"] & names["test"]


def test_a_correct_function_passes_its_tests() -> None:
    right = {
        "add_": "lambda x: x + K", "times_": "lambda x: x * K", "rest_": "lambda x: x % K",
        "first_": "lambda x: x[:K]", "every_": "lambda x: x[::K]", "repeat_": "lambda x: x * K",
    }  # fmt: skip
    tasks = load_tasks(TasksConfig(sources=[TaskSourceConfig(type="programs")]))
    tried = 0
    for task in take(tasks, "train", 80):
        name = task.metadata["entry_point"]
        prefix = name.rpartition("_")[0] + "_"
        if prefix in right:
            code = f"{name} = {right[prefix].replace('K', name.rpartition('_')[2])}\n"
            exec(code + "\n".join([*task.answer["tests"], *task.metadata["public_tests"]]), {})
            tried += 1
    assert tried > 10


def test_only_rows_with_a_value_are_used(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = [{"problem": f"{n}?", "answer": n, "problem_type": "math" if n % 2 else "qa"} for n in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TaskSourceConfig(type=str(file), split="train", only={"problem_type": "math"})
    tasks = take(load_tasks(TasksConfig(sources=[source])), "train", 99)
    assert sorted(int(task.answer) for task in tasks) == list(range(1, 20, 2))


def test_hidden_tests_of_a_file_are_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "code.jsonl"
    answer = {"tests": ["assert f(1) == 1"], "entry_point": "f"}
    file.write_text(json.dumps({"problem": "Write f.", "answer": answer, "entry_point": "f"}))
    source = TaskSourceConfig(type=str(file), split="train")
    (task,) = take(load_tasks(TasksConfig(sources=[source])), "train", 1)
    assert task.answer == answer and task.metadata["entry_point"] == "f"
