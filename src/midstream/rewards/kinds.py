"""Kinds of reference answers, which determine how answers are compared."""

from __future__ import annotations

import re
from enum import StrEnum
from fractions import Fraction
from typing import Any

from midstream.rewards.answers import extract_answer
from midstream.rewards.characters import unify
from midstream.rewards.choices import choice_of_reference
from midstream.rewards.numbers import number_of, whole_number, whole_quantity
from midstream.rewards.text_match import unwrapped
from midstream.rewards.units import unit_of


class Kind(StrEnum):
    """Kind of a reference answer."""

    NUMBER = "number"
    """A Python number, or text that is a number: `1,234`, `$5`, `50%`, `3/4`, `2 million`."""
    QUANTITY = "quantity"
    """A number with a known unit: `1.5 cm`, `-5 degrees`."""
    CHOICE = "choice"
    """A letter from A to J, alone or in brackets."""
    EXPRESSION = "expression"
    """Mathematics: `x-1`, `7\\sqrt{2}`, `[1,2)`, `1, 2, 3`."""
    TEXT = "text"
    """Anything else: names, phrases, symbols such as `C++`."""


def kind_of(reference: Any) -> Kind:
    """Return the kind of one accepted answer."""
    if isinstance(reference, int | float | Fraction) and not isinstance(reference, bool):
        return Kind.NUMBER if number_of(reference) is not None else Kind.TEXT
    if not isinstance(reference, str):
        return Kind.TEXT
    text = extract_answer(reference)
    if whole_number(text) is not None:
        return Kind.NUMBER
    if choice_of_reference(text):
        return Kind.CHOICE
    if whole_quantity(text) is not None:
        return Kind.QUANTITY
    return Kind.EXPRESSION if is_expression(text) else Kind.TEXT


_WORDS = re.compile(r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_NOT_MATHEMATICS = re.compile(
    r"[A-Za-z]\d|^\s*\d+[A-Z]\s*$|(?<!\\)(?<![A-Za-z])[A-Z]{2}|[A-Z]/[A-Z]|\bn/a\b"  # H2O, 3D, AC/DC, I/O
    r"|\d(?:st|nd|rd|th)\b"
    r"|^\s*[\d.]+(?:-[\d.]+)+\s*$|^\s*\d+/\d+/\d+\s*$|\d:\d"  # 2020-01-02, 10-12, 1/2/2020, 10:30
)
_COMMAND = re.compile(
    r"\\(?:text|mathrm|mbox|operatorname)\s*\{([^{}]*)\}|\\(?:begin|end)\{[a-z*]+\}|\\[A-Za-z]+|\\[,;!: {}%$]|\\\\"
)
_FUNCTION = r"(?:arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|sec|csc|log|ln|exp|sqrt|abs|max|min|pi|inf|infty|oo|mod|cdot)"
_ATOM = re.compile(rf"{_FUNCTION}|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[A-Za-zα-ωΑ-Ωπ∞](?![A-Za-z]{{2}})")
_OPERATOR = re.compile(r"\*\*|<=|>=|!=|==|[-+*/^_=<>≤≥≠±×·÷√∪∩∈!|%,;:°'&]")
_BINARY_END = re.compile(r"(?:[-+*/^=<>≤≥≠±×·÷√∪∩∈&_:]|,)\s*$")
_MATHEMATICAL = re.compile(
    r"\\[A-Za-z]+|[-+*/^=<>≤≥≠±×·÷√∪∩∈!|]|\d[A-Za-z(]|[A-Za-z]\(|[(\[{].*,|\d\s*,\s*[-\d]|π|∞|(?<![A-Za-z])[A-Za-z]_[\w{]"
)


def is_expression(text: str) -> bool:
    """Return whether `text` is pure mathematics: numbers, single letters, functions and operators between them.

    Words make it text, and so does an operator without its operand: `C++`, `A*`, `--`.
    """
    text = unwrapped_mathematics(text)
    if not text or len(text) > 400 or _MATHEMATICAL.search(text) is None:
        return False
    if any(words.strip() not in ("", "or", "and") and unit_of(words) is None for words in _WORDS.findall(text)):
        return False
    if _NOT_MATHEMATICS.search(_COMMAND.sub(" ", text)):
        return False
    rest = _COMMAND.sub(" 1 ", text)
    rest, atoms = _ATOM.subn(" ", rest)
    rest = _OPERATOR.sub(" ", rest)
    if atoms == 0 or re.sub(r"[\s()\[\]{}.$]", "", rest):
        return False
    end = re.sub(r"\\[,;!: ]", "", text).rstrip(" .$)]}")
    if _BINARY_END.search(end) or re.match(r"\s*[*/^=_:&]", text):
        return False
    return re.search(r"[+*/^=]\s*[*/^=]", text.replace("**", "^").replace("==", "=")) is None


def unwrapped_mathematics(text: str) -> str:
    """Remove math delimiters, markdown and a final full stop from `text`."""
    text = unify(text).strip().rstrip(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : len(text) - len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner.strip() and "$" not in inner:
            return inner.strip().rstrip(".").strip()
    return unwrapped(text) if text[:1] in "*_`\"'" else text
