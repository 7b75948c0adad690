"""Rows of well-known data sets, as they are, become tasks; made-up rows in their formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midstream.core.types import Task
from midstream.rewards.graders import answer_correct
from midstream.rewards.target_number import reaches
from midstream.tasks.files import file_tasks
from midstream.tasks.formats import boxed, public_examples
from midstream.tasks.rows import RowFields

HUMAN_EVAL = {
    "task_id": "Made/0",
    "prompt": "from typing import List\n\n\ndef twice(x: int) -> int:\n"
    '    """ Doubles x.\n    >>> twice(2)\n    4\n    >>> print(twice(3))\n    6\n    """\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(5) == 10\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to triple a number.",
    "code": "def triple(x):\n    return 3 * x",
    "test_list": ["assert triple(1) == 3", "assert triple(2) == 6", "assert triple(0) == 0"],
}
HOTPOT = {
    "_id": "a1",
    "question": "Who wrote the book?",
    "answer": "Ann Lee",
    "context": [["The book", ["It is long.", " Ann Lee wrote it."]], ["Another", ["It is short."]]],
    "supporting_facts": [["The book", 1]],
}
HOTPOT_HUB = {
    **HOTPOT,
    "context": {"title": ["The book", "Another"], "sentences": [["It is long.", "Ann Lee wrote it."], ["Short."]]},
}
DROP = {"id": "d1", "context": "Passage: They scored 3 and 4.\nQuestion: How many in all?", "ref_text": "7|seven"}
MATH = {
    "problem": "What is $1/2 + 1/2$?",
    "solution": "It is $\\boxed{\\frac{2}{2}}$, so \\boxed{1}.",
    "level": "Level 1",
}
GSM8K = {"question": "Ann has 1,000 pens and buys 234. How many?", "answer": "1000 + 234 = 1234\n#### 1,234"}
GAME = {"id": "g1", "question": [1, 1, 1, 8], "answers": ["['(1+1+1)×8']"]}


def read(folder: Path, row: Any) -> Task:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return file_tasks(folder / "rows.jsonl", RowFields(split="test")).get("test", 0)


def test_human_eval_gets_hidden_tests_and_the_examples_of_its_docstring_as_public_ones(tmp_path: Path) -> None:
    task = read(tmp_path, HUMAN_EVAL)
    assert task.id == "Made/0" and "def twice" in task.question
    assert task.answer == {"tests": [HUMAN_EVAL["test"]], "entry_point": "twice"}
    assert task.metadata["public_tests"] == ["assert twice(2) == 4"]
    assert "candidate(5)" not in task.question + str(task.metadata) and "2 * x" not in str(task)


def test_mbpp_shows_its_first_test_and_hides_the_others(tmp_path: Path) -> None:
    task = read(tmp_path, MBPP)
    assert task.metadata["public_tests"] == ["assert triple(1) == 3"] and task.metadata["entry_point"] == "triple"
    assert task.answer == {"tests": MBPP["test_list"][1:], "entry_point": "triple"}
    assert "triple(2)" not in task.question and "3 * x" not in str(task)


@pytest.mark.parametrize("row", [HOTPOT, HOTPOT_HUB])
def test_hotpot_s_paragraphs_stand_before_the_question(tmp_path: Path, row: Any) -> None:
    task = read(tmp_path, row)
    assert task.question.startswith("The book: It is long. Ann Lee wrote it.\n\nAnother: ")
    assert task.question.endswith("Question: Who wrote the book?") and task.answer == "Ann Lee"


def test_drop_has_several_accepted_answers(tmp_path: Path) -> None:
    assert read(tmp_path, DROP).answer == ["7", "seven"]


def test_math_s_answer_is_the_last_boxed_part(tmp_path: Path) -> None:
    task = read(tmp_path, MATH)
    assert (task.answer, task.metadata["problem_type"], task.metadata["level"]) == ("1", "math", "Level 1")
    assert boxed("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}" and boxed("none") is None and boxed("\\boxed{open") is None


def test_gsm8k_and_a_prepared_row_are_read_as_before(tmp_path: Path) -> None:
    assert read(tmp_path, GSM8K).answer == "1234"
    assert read(tmp_path, {"problem": "p", "problem_type": "qa", "ground_truth": "a"}).answer == "a"


def test_game_of_24_accepts_every_right_expression_and_no_other(tmp_path: Path) -> None:
    task = read(tmp_path, GAME)
    assert "1, 1, 1 and 8" in task.question
    assert answer_correct("Let me see.\n<answer>8 * (1 + 1 + 1) = 24</answer>", task.answer) == 1
    assert answer_correct("(1+1+1)×8", task.answer) == 1
    for wrong in ("8*3", "24", "1+1+1+8", "(1+1+1)*8*1", "8**3", "__import__('os')", "", "(1+1+1)*8.0", "8/(1-1)+1"):
        assert answer_correct(wrong, task.answer) == 0, wrong
    assert not reaches("1", {"other": 1}) and not reaches("1+" * 400 + "1", {"numbers": [1], "target": 24})


def test_examples_that_are_no_plain_calls_are_left_out() -> None:
    code = 'def f(x):\n    """\n    >>> f(1)\n    <object>\n    >>> y = f(2)\n    >>> f(3)\n    [1, 2]\n    """\n'
    assert public_examples(code, "f") == ["assert f(3) == [1, 2]"]
    assert public_examples("def f(", "f") == [] and public_examples("x = 1", "f") == []
