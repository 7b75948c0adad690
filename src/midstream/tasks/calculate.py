"""`calculate`: two numbers and one operation, bare or in a short story. Needs `calculator`. Unbounded.

The split key is the pair of operands: a pair that occurs in test never occurs in train, with any operation.
"""

from __future__ import annotations

import random

from midstream.tasks.taskset import Draft, GeneratedTaskSet, TaskSet, split_of

_BARE = {
    "+": ("What is {a} + {b}?", "Compute {a} + {b}.", "Add {a} and {b}.", "How much is {a} plus {b}?"),
    "-": ("What is {a} - {b}?", "Compute {a} - {b}.", "Subtract {b} from {a}.", "How much is {a} minus {b}?"),
    "*": ("What is {a} * {b}?", "Compute {a} * {b}.", "Multiply {a} by {b}.", "How much is {a} times {b}?"),
    "/": ("What is {a} / {b}?", "Compute {a} / {b}.", "Divide {a} by {b}.", "How much is {a} divided by {b}?"),
}
_STORIES = {
    "+": (
        "A library has {a} books and buys {b} more. How many books does it have now?",
        "Ann has {a} {things} and Ben has {b}. How many {things} do they have together?",
    ),
    "-": (
        "A shop had {a} {things} and sold {b}. How many {things} are left?",
        "A train carried {a} people and {b} got off. How many people are still on it?",
    ),
    "*": (
        "A box holds {a} {things}. How many {things} are in {b} boxes?",
        "Tickets cost {a} dollars each. How many dollars do {b} tickets cost?",
    ),
    "/": (
        "{a} {things} are shared equally by {b} children. How many does each child get?",
        "{a} {things} are packed into {b} equal boxes. How many {things} are in each box?",
    ),
}
_THINGS = ("pens", "apples", "stamps", "marbles", "coins", "eggs", "cards", "oranges", "shells", "buttons")


def calculate(seed: int = 0) -> TaskSet:
    """The set `calculate`."""
    return GeneratedTaskSet("calculate", _draw, seed)


def _draw(rng: random.Random, split: str) -> Draft:
    while True:
        operator = rng.choice("+-*/")
        a, b = _operands(rng, operator)
        low, high = sorted((a, b))
        key = f"calculate/{low}/{high}"
        if split_of(key) == split:
            break
    template = rng.choice(_BARE[operator] if rng.random() < 0.6 else _STORIES[operator])
    answer = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    expression = f"{a} {operator} {b}"
    return Draft(
        question=template.format(a=a, b=b, things=rng.choice(_THINGS)),
        answer=str(answer),
        key=key,
        entity=expression,
        demonstration=[{"tool": "calculator", "arguments": {"expression": expression}}],
    )


def _operands(rng: random.Random, operator: str) -> tuple[int, int]:
    """Two and three digits, the second factor or divisor also one; differences are positive and divisions exact."""
    match operator:
        case "*":
            return rng.randint(10, 999), rng.randint(2, 99)
        case "/":
            divisor = rng.randint(2, 99)
            return divisor * rng.randint(max(2, -(-10 // divisor)), 999 // divisor), divisor
        case "-":
            b = rng.randint(10, 998)
            return rng.randint(b + 1, 999), b
        case _:
            return rng.randint(10, 999), rng.randint(10, 999)
