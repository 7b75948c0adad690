"""`programs`: write a small Python function. Graded by hidden tests; two other tests are public. Unbounded.

The answer is `{"tests": [...], "entry_point": name}`; `metadata` has `entry_point`, `public_tests` and `problem_type`.
The split key is the family with its constants: a function that is asked for in test never occurs in train.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

HIDDEN, PUBLIC = 5, 2
_WORDS = ("stone", "river", "lamp", "Apple", "noon", "Cedar", "level", "kite", "otter", "Plum", "sun", "radar")


@dataclass(frozen=True, slots=True)
class _Family:
    """Functions of one shape. `{k}` and `{c}` in the text are a number and a letter; `solve(x, k, c)` is right."""

    name: str
    text: str
    solve: Callable[[Any, int, str], Any]
    draw: Callable[[random.Random], Any]


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randint(-20, 40) for _ in range(rng.randint(0, 7))]


def _number(rng: random.Random) -> int:
    return rng.randint(-50, 99)


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 2)))


_FAMILIES: Sequence[_Family] = (
    _Family("add_{k}", "returns the number x plus {k}", lambda x, k, c: x + k, _number),
    _Family("times_{k}", "returns the number x times {k}", lambda x, k, c: x * k, _number),
    _Family("rest_{k}", "returns the remainder of the whole number x divided by {k}", lambda x, k, c: x % k, _number),
    _Family("count_above_{k}", "returns how many numbers of the list x are greater than {k}",
            lambda x, k, c: sum(one > k for one in x), _numbers),
    _Family("sum_multiples_{k}", "returns the sum of the numbers of the list x that are divisible by {k}",
            lambda x, k, c: sum(one for one in x if one % k == 0), _numbers),
    _Family("first_{k}", "returns a list of the first {k} items of the list x, or all of them if there are fewer",
            lambda x, k, c: x[:k], _numbers),
    _Family("clip_{k}", "returns a list of the numbers of the list x, where each greater than {k} is replaced by {k}",
            lambda x, k, c: [min(one, k) for one in x], _numbers),
    _Family("count_{c}", "returns how often the letter '{c}' occurs in the text x, in either case",
            lambda x, k, c: x.lower().count(c), _word),
    _Family("without_{c}", "returns the text x without the lowercase letter '{c}'",
            lambda x, k, c: x.replace(c, ""), _word),
    _Family("repeat_{k}", "returns the text x written {k} times in a row", lambda x, k, c: x * k, _word),
    _Family("starts_with_{c}", "returns True when the text x starts with the letter '{c}' in either case, else False",
            lambda x, k, c: x.lower().startswith(c), _word),
    _Family("every_{k}", "returns a list of every item of the list x whose index is divisible by {k}",
            lambda x, k, c: x[::k], _numbers),
)  # fmt: skip


def programs(seed: int = 0) -> TaskSet:
    """The set `programs`."""
    return GeneratedTaskSet("programs", _draw, seed)


def _draw(rng: random.Random, split: str) -> Draft:
    while True:
        family, k, c = rng.choice(_FAMILIES), rng.randint(2, 30), rng.choice("abcdeilnoprstu")
        name = family.name.format(k=k, c=c)
        if split_of(f"programs/{name}") == split:
            break
    tests = [_test(name, family, family.draw(rng), k, c) for _ in range(HIDDEN + PUBLIC)]
    return Draft(
        question=f"Write a Python function {name}(x) that {family.text.format(k=k, c=c)}.",
        answer={"tests": tests[PUBLIC:], "entry_point": name},
        key=f"programs/{name}",
        entity=name,
        metadata={"entry_point": name, "public_tests": tests[:PUBLIC], "problem_type": "code"},
    )


def _test(name: str, family: _Family, argument: Any, k: int, c: str) -> str:
    return f"assert {name}({argument!r}) == {family.solve(argument, k, c)!r}"
