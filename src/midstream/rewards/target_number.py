"""Grades Game of 24 and similar tasks: whether an expression uses each given number once and equals the target.

The expression is parsed and computed with fractions; nothing is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

MAX_CHARS = 500
_WRITTEN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "[": "(", "]": ")", "{": "(", "}": ")"})


def reaches(answer: str, reference: Mapping[str, Any]) -> bool:
    """Whether the expression `answer` uses exactly `reference["numbers"]` and equals `reference["target"]`. A trailing
    `= 24` is ignored. False for other references, and for text that is not such an expression."""
    if "numbers" not in reference or "target" not in reference:
        return False
    lines = [line for line in answer.translate(_WRITTEN).replace("$", "").splitlines() if line.strip()]
    text = lines[-1].partition("=")[0].strip() if lines else ""
    if not text or len(text) > MAX_CHARS:
        return False
    used: list[int] = []
    try:
        value = _value(ast.parse(text, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return sorted(used) == sorted(map(int, reference["numbers"])) and value == Fraction(reference["target"])


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left=left, op=operator, right=right):
            first, second = _value(left, used), _value(right, used)
            match operator:
                case ast.Add():
                    return first + second
                case ast.Sub():
                    return first - second
                case ast.Mult():
                    return first * second
                case ast.Div():
                    return first / second
                case _:
                    pass
        case _:
            pass
    raise ValueError("not an expression of +, -, *, / and brackets")
