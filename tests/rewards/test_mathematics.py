"""math_verify compares mathematics, and survives expressions whose evaluation never ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from midstream.core.errors import UserError
from midstream.rewards import math_process
from midstream.rewards.graders import answer_correct
from midstream.rewards.math_process import compare
from midstream.rewards.mathematics import math_verify


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("1/2", "0.5", 1.0),
        (r"Hence $\frac{1}{2}$.", r"\frac12", 1.0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", 1.0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        ("The answer is 5", 5, 1.0),
        ("7", [5, 7], 1.0),
        ("112", "12", 0.0),
        ("3, 4, 5", "5", 0.0),
        ("1 and 2", "2", 0.0),
        ("", "2", 0.0),
        ("2", None, 0.0),
        ("\0 \ud800 }{", "2", 0.0),
    ],
)
def test_equal_expressions_match_in_any_notation(prediction: str, answer: Any, score: float) -> None:
    assert math_verify(prediction, answer) == score


def test_an_endless_expression_scores_zero_and_grading_continues() -> None:
    assert math_verify("9**9**9**9**9", "5", timeout_s=0.5) == 0.0
    assert compare([("5", "9^{9^{9^{9}}}")], timeout_s=0.5) == [False]  # what no rule of ours sees coming
    assert math_verify("5", "5") == 1.0


def test_mathematics_is_graded_from_several_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        scores = list(threads.map(lambda number: math_verify(f"{number}/2", str(number / 2)), range(1, 17, 2)))
    assert scores == [1.0] * 8


def test_a_missing_package_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_process, "_worker", math_process._Worker())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="math-verify"):
        math_verify("1 + x", "x + 1")


SUMS_TO_DO = [
    ("3+4", 7),
    ("So, 875 / 35 =", 25),
    ("875/35", "25"),
    ("\\boxed{5 \\times 5}", "25"),
    ("$\\frac{50}{2}$", 25),
    ("The answer is 100 - 75", 25),
]
STATED = [("875 / 35 = 25", 25), ("2.5 \\times 10^1", 25), ("6/8", "3/4"), ("1 1/2", 1.5), ("25/1", 25), ("-(-25)", 25)]


@pytest.mark.parametrize(("prediction", "answer"), SUMS_TO_DO)
def test_arithmetic_that_is_left_to_do_states_no_number(prediction: str, answer: Any) -> None:
    assert math_verify(prediction, answer) == answer_correct(prediction, answer) == 0.0


@pytest.mark.parametrize(("prediction", "answer"), STATED)
def test_a_number_may_be_a_fraction_or_follow_its_sum(prediction: str, answer: Any) -> None:
    assert math_verify(prediction, answer) == 1.0
