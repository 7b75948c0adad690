"""`calculator`: exact arithmetic on text, safe with hostile input.

Python's parser reads the expression, and a walk over its syntax tree evaluates it with fractions; no code is executed.
Not supported: functions, roots, fractional powers, units, variables.
"""

from __future__ import annotations

import ast
import re
from fractions import Fraction

from midstream.tools.declare import tool
from midstream.tools.errors import ToolError

MAX_CHARS = 400
MAX_BITS = 4000
"""Largest intermediate numerator or denominator; about 1200 digits. Python refuses to print integers beyond 4300."""

_SIGNS = str.maketrans({"\N{MULTIPLICATION SIGN}": "*", "\N{MIDDLE DOT}": "*", "\N{DOT OPERATOR}": "*", "^": "**"})
_SIGNS |= str.maketrans({"\N{DIVISION SIGN}": "/", "\N{DIVISION SLASH}": "/", "\N{FRACTION SLASH}": "/"})
_SIGNS |= str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LEADING_ZEROS = re.compile(r"(?<![\d.eE+-])0+(?=\d)|(?<=[+-])(?<![eE][+-])0+(?=\d)")
_TIMES = re.compile(r"(?<=[\d)])\s+[xX]\s+(?=[\d(.+-])")
_ALLOWED = re.compile(r"[0-9.+\-*/%()\seE]*")
_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?")
_ALLOWED_TEXT = "use only numbers, + - * / // % ** and parentheses"


@tool(
    idempotent=True,
    returns="number",
    limits=["arithmetic only: no variables, functions or units"],
    examples=[{"expression": "12 * (3 + 4.5)"}],
)
def calculator(expression: str) -> str:
    """Work out arithmetic exactly, such as 12 * (3 + 4.5)."""
    return format_number(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an arithmetic expression; raises `ToolError` if it is invalid."""
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression is too long ({len(expression)} characters, at most {MAX_CHARS})")
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), expression.translate(_SIGNS))
    text = " ".join(_LEADING_ZEROS.sub("", _TIMES.sub(" * ", text)).split())
    if not text:
        raise ToolError("the expression is empty")
    if "," in text:
        raise ToolError("a comma may only separate thousands, as in 1,234")
    if not _ALLOWED.fullmatch(text):
        odd = next(letter for letter in text if not _ALLOWED.fullmatch(letter))
        raise ToolError(f"not arithmetic: '{odd}' is not allowed")
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, MemoryError):
        raise ToolError(f"not arithmetic: '{_short(expression)}' cannot be read; {_ALLOWED_TEXT}") from None
    except RecursionError:
        raise ToolError("the expression is nested too deeply") from None
    except ZeroDivisionError:
        raise ToolError("division by zero") from None


def format_number(value: Fraction) -> str:
    """Format integers plainly, terminating decimals exactly, others to 6 decimals (below 1: to 6 significant ones)."""
    denominator = value.denominator
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest == 1:
        return _decimal(value, max(twos, fives))
    places = 6
    while abs(value) * 10**places < 100_000:
        places += 1
    return _decimal(value, places)


def _decimal(value: Fraction, places: int) -> str:
    scaled = round(value * 10**places)
    digits = str(abs(scaled)).rjust(places + 1, "0")
    sign = "-" if scaled < 0 else ""
    if places == 0:
        return sign + digits
    whole, decimals = digits[:-places], digits[-places:].rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else sign + whole


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        return _number(text[node.col_offset : node.end_col_offset])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        operand = _value(node.operand, text)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp):
        return _bounded(_binary(node.op, _value(node.left, text), _value(node.right, text)))
    if isinstance(node, ast.Call):
        raise ToolError("not arithmetic: write * between a number and a parenthesis")
    raise ToolError(f"not arithmetic: {_ALLOWED_TEXT}")


def _binary(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return Fraction(left // right)
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
        case _:
            raise ToolError(f"not arithmetic: {_ALLOWED_TEXT}")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("an exponent must be a whole number")
    if _bits(base) * abs(exponent) > MAX_BITS:
        raise ToolError("the result is too large")
    return base ** int(exponent)


def _number(literal: str) -> Fraction:
    match = _NUMBER.fullmatch(literal)
    if match is None:
        raise ToolError(f"not arithmetic: '{literal}' is not a number")
    if match[1] and abs(int(match[1])) > 300:
        raise ToolError("the result is too large")
    return _bounded(Fraction(literal.rstrip(".")))


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MAX_BITS:
        raise ToolError("the result is too large")
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
