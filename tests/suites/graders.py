"""Every built-in grader with tasks of its kinds, for the grader suites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midstream.rewards import graders
from midstream.rewards.mathematics import math_verify


@dataclass(frozen=True, slots=True)
class GradedTask:
    """A question with its answer, and similar wrong answers."""

    question: str
    answer: str
    wrong: tuple[str, ...]


NUMBERS = (
    GradedTask("Is 17 or 24 the sum of 9 and 8?", "17", ("18", "16", "24")),
    GradedTask("What is -5 in words: 5 below zero, or 5 above it?", "-5", ("5", "-6")),
    GradedTask("Which part is 3 of 4: 3/4 or 4/3?", "3/4", ("4/3", "1/4")),
    GradedTask("How much is 1.5 times 1000, 1500 or 150?", "1,500", ("150", "1,501")),
)
QUANTITIES = (
    GradedTask("How long is it, 1.5 cm or 15 cm?", "1.5 cm", ("15 cm", "1.5 m")),
    GradedTask("How cold is it, 5 degrees or -5 degrees?", "-5 degrees", ("5 degrees", "-4 degrees")),
)
CHOICES = (
    GradedTask("(A) London (B) Paris (C) Rome (D) Bern", "B", ("A", "C", "D")),
    GradedTask("A) 1 B) 2 C) 3 D) 4", "A", ("B", "C", "D")),
)
TEXTS = (
    GradedTask("Is it Paris, London or Rome?", "Paris", ("London", "Rome")),
    GradedTask("Which city: New York City, or New Haven?", "New York City", ("New Haven", "York")),
)
SYMBOLS = (
    GradedTask("Is it C++, C# or F#?", "C++", ("C#", "F#")),
    GradedTask("Is the date 2020-01-02 or 2020-01-03?", "2020-01-02", ("2020-01-03", "20200102")),
)
EXPRESSIONS = (
    GradedTask("Is it x-1 or x+1?", "x-1", ("x+1", "1-x")),
    GradedTask("7 times the root of 2 or of 3?", "7\\sqrt{2}", ("7\\sqrt{3}", "7")),
    GradedTask("Half-open, on which side?", "[1,2)", ("(1,2]", "(1,2)")),
    GradedTask("A power of ten?", "10^3", ("10^4", "10")),
)

GRADERS: dict[str, tuple[Callable[[str, Any], float], tuple[GradedTask, ...]]] = {
    "correctness": (graders.answer_correct, (*NUMBERS, *QUANTITIES, *CHOICES, *TEXTS, *SYMBOLS, *EXPRESSIONS)),
    "math": (math_verify, (*NUMBERS, *QUANTITIES, *CHOICES, *EXPRESSIONS)),
    "numeric": (graders.numeric, NUMBERS),
    "multiple_choice": (graders.multiple_choice, CHOICES),
    "exact_match": (graders.exact_match, TEXTS),
    "f1": (graders.f1, TEXTS),
}
"""Graders and their tasks, by component."""

CASES = [
    (name, grade, task, wrapping)
    for name, (grade, tasks) in GRADERS.items()
    for task in tasks
    for wrapping in ("<answer>{}</answer>", "\\boxed{{{}}}")
]
IDS = [f"{name}-{task.answer}-{'tag' if '<' in wrapping else 'box'}" for name, _, task, wrapping in CASES]
