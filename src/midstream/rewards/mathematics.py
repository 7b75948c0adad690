"""Mathematical equality by the package math-verify: fractions, roots, sets, intervals, equations.

math-verify gets only LaTeX in math delimiters, because its parser for plain text finds `4` in `4\\sqrt{2}`. The whole
answer after its thinking is compared; a denial, a choice or a false equation is wrong.
"""

from __future__ import annotations

import re
from typing import Any

from midstream.core.text import after_thinking
from midstream.rewards.answers import after_lead_in, extract_answer, marked_answer
from midstream.rewards.characters import unify
from midstream.rewards.kinds import Kind, is_expression, kind_of, unwrapped_mathematics
from midstream.rewards.math_process import compare
from midstream.rewards.numbers import last_number, number_of, tidy, whole_number
from midstream.rewards.units import unit_of

REL_TOL = 1e-6
LONGEST = 400
"""Maximum characters of a statement."""


def same_mathematics(text: str, reference: Any, timeout_s: float = 5.0) -> bool:
    """Return whether `text` states something mathematically equal to `reference`, and nothing that contradicts it.

    A number is stated only when it is worked out: `875/35` does not state 25, `875/35 = 25` does. Also returns False
    when the comparison takes longer than `timeout_s` or fails. Thread-safe. Raises `UserError` when math-verify is
    needed but missing.
    """
    gold = latex(extract_answer(str(reference)))
    stated = stated_mathematics(text)
    if not stated or not gold:
        return False
    if _tight(stated) == _tight(gold):
        return True
    if _numbers_differ(stated, gold) or _ENDLESS.search(stated) or _shape(stated) != _shape(gold):
        return False
    parts = [part for part in re.split(r"(?<![<>!\\=])=(?!=)", stated) if part.strip()]
    if whole_number(gold) is not None and all(_is_sum_to_do(part) for part in parts):
        return False
    if "=" in gold or len(parts) < 2:
        return compare([(gold, stated)], timeout_s)[0]
    # Each side of an equation that does not name an unknown must equal the answer: 13 = 12 is not 12.
    sides = [part for part in parts if not (_is_name(part) if _has_unknown(gold) else _has_unknown(part))]
    return bool(sides) and all(compare([(gold, side) for side in sides], timeout_s))


def stated_mathematics(text: str) -> str | None:
    """Return the stated answer of `text` as LaTeX without delimiters: its marked part, the part after "the answer is",
    its last formula in math delimiters, or the number it states. None when there is none, several, or a denial."""
    text = after_thinking(text)
    marked = marked_answer(text)
    if marked is not None:
        return _one_statement(marked)
    led = after_lead_in(text)
    for candidate in (text, led):
        if candidate is not None and is_expression(candidate):
            return _one_statement(candidate)
    formulas = _FORMULA.findall(text if led is None else led)
    if formulas and not _DENIED.search(text):
        return _one_statement(next(part for part in formulas[-1] if part))
    number = last_number(text)
    return None if number is None else _fraction(number.value, number.percent)


def latex(text: str) -> str:
    """Convert `text` to LaTeX for math-verify: plain functions and symbols become commands; units and currencies are
    removed."""
    text = unify(unwrapped_mathematics(text.replace("\\!", "")))
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ",", text)
    text = _TEXT.sub(lambda words: " " if _is_unit(words[1]) else words[0], text)
    text = text.replace("\\left", "").replace("\\right", "").replace("\\$", "").replace("**", "^")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\^\s?\{?\s?\\circ\s?\}?|\\degree|°", "", text)
    for plain, command in _SYMBOLS.items():
        text = text.replace(plain, command)
    text = re.sub(r"(?<!\\)\bsqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)|√\s*(\w+)", _root, text)
    text = re.sub(r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sin|cos|tan|log|ln|exp|pi|infty)(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\^\(([^()]*)\)", r"^{\1}", text)
    text = re.sub(r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)
    text = re.sub(r"(?<!\\)%", r"\\%", text)
    return text.replace("$", "").strip()


_FORMULA = re.compile(r"\$\$(.{1,400}?)\$\$|\$([^$]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)
_ENDLESS = re.compile(r"\^\s*\{?\s*-?\d{4,}|\^[^-+=,]*\^[^-+=,]*\^|\d{4,}\s*\}?\)?!|!\s*!")
"""Powers and factorials that no answer needs but a computer algebra system would evaluate."""
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{\s*([^{}]*?)\s*\}")
_SYMBOLS = {
    "π": "\\pi ",
    "∞": "\\infty ",
    "×": "\\times ",
    "·": "\\cdot ",
    "÷": "/",
    "≤": "\\leq ",
    "≥": "\\geq ",
    "<=": "\\leq ",
    ">=": "\\geq ",
    "≠": "\\neq ",
    "±": "\\pm ",
    "∪": "\\cup ",
    "∩": "\\cap ",
    "∈": "\\in ",
}
_DENIED = re.compile(r"\b(?:not|isn't|wrong|incorrect|false|neither|never)\b", re.IGNORECASE)
_SEVERAL = re.compile(r"\\(?:lor|vee)\b|\b(?:or|either)\b")


def _one_statement(text: str) -> str | None:
    """Return `text` as LaTeX when it states exactly one thing and does not deny it; else None."""
    if not text.strip() or len(text) > LONGEST or _DENIED.search(text) or _SEVERAL.search(text):
        return None
    led = after_lead_in(text)
    text = led if led else text
    formulas = _FORMULA.findall(text)
    if len(formulas) == 1 and not is_expression(text):  # "The area is $4\\pi$."
        text = next(part for part in formulas[0] if part)
    if is_expression(text) or whole_number(text) is not None:
        return latex(text)
    number = last_number(text)
    if number is not None and re.search(r"[A-Za-z]{2}", tidy(text)):
        return _fraction(number.value, number.percent)  # "12 apples"
    return latex(text)


def _fraction(value: Any, percent: bool) -> str:
    text = str(value.numerator) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    return text + ("\\%" if percent else "")


def _root(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match[1] or match[2] or match[3]}}}"


def _is_unit(words: str) -> bool:
    return words == "" or unit_of(words) is not None


def _tight(text: str) -> str:
    return re.sub(r"\s|\\[,;:! ]", "", text)


def _numbers_differ(stated: str, gold: str) -> bool:
    """Return whether both are plain numbers and different, which needs no computer algebra system."""
    one, other = whole_number(stated), whole_number(gold)
    return one is not None and other is not None and not one.matches(other, REL_TOL)


def _shape(text: str) -> tuple[bool, bool]:
    """Return features that math-verify ignores: the base of a number (`12_3`) and a ratio (`2:1`)."""
    return re.search(r"\d\s*_", text) is not None, re.search(r"\d\s*:\s*\d", text) is not None


_SCIENTIFIC = re.compile(r"[\d.]+\s*\\(?:times|cdot)\s*10\s*\^\s*\{?\s*-?\d+\s*\}?")
_FRACTION = re.compile(r"\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(?<![\d./])(\d+)\s*/\s*(\d+)(?![\d./])")
_OPERATION = re.compile(r"[\d)}.]\s*(?:[-+*/]|\\(?:times|cdot|div)(?![A-Za-z]))\s*\\?[\w({]")


def _is_sum_to_do(part: str) -> bool:
    """Return whether a side of an equation is arithmetic that is left to do: an operation on numbers other than a
    fraction, a mixed number or scientific notation, or a fraction that is a whole number."""
    part = re.sub(_SCIENTIFIC, "1", part)
    for found in _FRACTION.finditer(part):
        top, bottom = (int(group) for group in found.groups() if group is not None)
        if bottom > 1 and top % bottom == 0:
            return True
    return _OPERATION.search(re.sub(_FRACTION, "1", part)) is not None


def _has_unknown(part: str) -> bool:
    letters = re.sub(r"\\[A-Za-z]+", " ", part)
    return re.search(r"[A-Za-z]", letters) is not None


def _is_name(part: str) -> bool:
    """Return whether a side of an equation only names the other side: `x`, `f(x)`, `A_1`."""
    return re.fullmatch(r"\s*[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z, ]*\))?\s*", part) is not None


def math_verify(prediction: str, answer: Any, timeout_s: float = 5.0) -> float:
    """1 when `prediction` states something mathematically equal to `answer` (or to one of a list), else 0.

    A choice or a text answer is compared as in `graders.answer_correct`.
    """
    from midstream.rewards.graders import answer_correct

    accepted = answer if isinstance(answer, list | tuple | set | frozenset) else (answer,)
    for reference in accepted:
        if reference is None:
            continue
        if answer_correct(prediction, reference) == 1:
            return 1.0
        if kind_of(reference) in (Kind.NUMBER, Kind.EXPRESSION, Kind.QUANTITY):
            if kind_of(reference) is Kind.QUANTITY and re.search(r"(?<!\\)[A-Za-z°]", extract_answer(prediction)):
                continue  # the same number with a different unit
            if same_mathematics(prediction, _as_text(reference), timeout_s):
                return 1.0
    return 0.0


def _as_text(reference: Any) -> str:
    if isinstance(reference, str):
        return reference
    number = number_of(reference)
    return str(reference) if number is None else _fraction(number.value, number.percent)
