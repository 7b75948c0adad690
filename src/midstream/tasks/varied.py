"""`varied`: four kinds of short problems, each solved best by a different workflow. Unbounded.

| sort | example | what solves it |
| --- | --- | --- |
| `recall` | What is the capital of Peru? | one short answer |
| `steps` | Ann has 12 pens, buys 7 more and gives 5 away. | thinking step by step |
| `product` | What is 4821 * 937? | a program |
| `odd` | Which word does not belong: pear, hammer, plum, apple? | a vote among several samples |

The metadata contains `sort`, `problem_type` for graders, and `workflow`, the name of the suitable workflow shape. The
split key is the country, the numbers or the words, so those of test never occur in train.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from midstream.tasks.geography import countries
from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

SORTS = ("recall", "steps", "product", "odd")
SUITED: Mapping[str, str] = {"recall": "direct", "steps": "steps", "product": "program", "odd": "vote"}
"""The workflow shape that suits each kind; see `workflows/demonstrate.py`."""
_NAMES = ("Ann", "Ben", "Eva", "Tom", "Mia", "Sam")
_THINGS = ("pens", "apples", "stamps", "coins", "eggs", "cards", "shells", "buttons")
_GROUPS: Sequence[Sequence[str]] = (
    ("apple", "pear", "plum", "cherry", "grape", "peach", "lemon", "melon"),
    ("hammer", "saw", "drill", "wrench", "chisel", "pliers", "file", "axe"),
    ("dog", "horse", "goat", "sheep", "rabbit", "camel", "fox", "otter"),
    ("red", "green", "blue", "yellow", "purple", "brown", "white", "grey"),
    ("violin", "flute", "drum", "harp", "cello", "trumpet", "organ", "oboe"),
)
_QUESTIONS: Mapping[str, str] = {
    "recall": r"What is the capital of (?P<country>[^?]+)\?",
    "steps": r"has (?P<a>\d+) (?P<things>\w+), buys (?P<b>\d+) more and gives (?P<c>\d+) away\.",
    "product": r"What is (?P<a>\d+) \* (?P<b>\d+)\?",
    "odd": r"Which word does not belong: (?P<words>\w+(?:, \w+){3})\?",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of the set, parsed from a text: its kind, its answer, and tempting wrong answers."""

    sort: str
    answer: str
    tempting: tuple[str, ...]
    expression: str = ""
    """Python that computes the answer of arithmetic."""


def varied(seed: int = 0) -> TaskSet:
    """The set `varied`."""
    return GeneratedTaskSet("varied", _draw, seed)


def find_problem(text: str) -> Problem | None:
    """Return the first problem of the set in `text`; None without one."""
    for sort, pattern in _QUESTIONS.items():
        if found := re.search(pattern, text):
            return _problem(sort, found.groupdict())
    return None


def _problem(sort: str, parts: Mapping[str, str]) -> Problem | None:
    if sort == "recall":
        answer = _capitals().get(parts["country"])
        return None if answer is None else Problem(sort, answer, ("unknown",))
    if sort == "odd":
        words = parts["words"].split(", ")
        odd = next((one for one in words if sum(_group(other) == _group(one) for other in words) == 1), None)
        return None if odd is None else Problem(sort, odd, tuple(one for one in words if one != odd))
    numbers = {name: int(parts[name]) for name in "abc" if name in parts}
    if sort == "steps":
        a, b, c = numbers.values()
        return Problem(sort, str(a + b - c), (str(a + b), str(a - c)), f"{a} + {b} - {c}")
    a, b = numbers.values()
    # A model that multiplies in its head gets the first and last digits right, and always makes the same mistake.
    return Problem(sort, str(a * b), (str(a * b + 100 * (1 + (a + b) % 8)),), f"{a} * {b}")


def _draw(rng: random.Random, split: str) -> Draft:
    sort = rng.choice(SORTS)
    while True:
        question, key = _question(sort, rng)
        if split_of(f"varied/{key}") == split:
            break
    problem = find_problem(question)
    assert problem is not None
    return Draft(
        question=question,
        answer=problem.answer,
        key=f"varied/{key}",
        entity=key,
        metadata={
            "sort": sort,
            "problem_type": "math" if problem.expression else "qa",
            "workflow": SUITED[sort],
        },
    )


def _question(sort: str, rng: random.Random) -> tuple[str, str]:
    """Return a question and its split key."""
    if sort == "recall":
        country = rng.choice(tuple(_capitals()))
        return f"What is the capital of {country}?", country
    if sort == "odd":
        group, other = rng.sample(_GROUPS, 2)
        odd = rng.choice(other)
        words = [*rng.sample(group, 3), odd]
        rng.shuffle(words)
        return f"Which word does not belong: {', '.join(words)}?", " ".join(sorted(words))
    if sort == "steps":
        a, b = rng.randint(11, 60), rng.randint(4, 40)
        c = rng.randint(2, 9)
        name, things = rng.choice(_NAMES), rng.choice(_THINGS)
        question = f"{name} has {a} {things}, buys {b} more and gives {c} away. How many {things} has {name} now?"
        return question, f"{a} {b} {c}"
    a, b = rng.randint(1001, 9999), rng.randint(101, 999)
    return f"What is {a} * {b}?", f"{a} {b}"


@cache
def _capitals() -> Mapping[str, str]:
    return {one.in_text: one.capital for one in countries() if one.complete}


def _group(word: str) -> int:
    return next((place for place, group in enumerate(_GROUPS) if word in group), -1)
