"""Parses numbers in text: signs, thousands separators, decimals, exponents, fractions, currencies, percent, "million".

Ignores number words ("twelve"), roman numerals, decimal commas, and numbers that are part of a larger expression
(`10^3`, `3x`, `\\sqrt{2}`, `875 / 35`, "12 squared", "less than 12").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from midstream.rewards.characters import spaced, unify
from midstream.rewards.units import Unit, unit_after, unit_of

LONGEST = 300
"""Maximum digits and powers of ten. Larger numbers are ignored, because no answer needs them and arithmetic on them
never ends."""
MOST_KEPT = 50
"""Maximum numbers remembered for a later "12 is wrong"."""

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,30}(?![\d,])|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w^.\\])(?<![A-Za-z_]-)                    # not inside a word, a version or an exponent: CO2, covid-19, m^2
    (?P<sign>(?<![\d)}}\]])[-+])?(?:(?P<currency>\\?[$€£¥₹])\s?)?(?P<sign2>-)?
    (?: (?:(?P<units>\d+)\s*)?\\[dt]?frac\s*(?:\{{(?P<top>-?\d+)\}}\s*\{{(?P<bottom>\d+)\}}|(?P<top1>\d)(?P<bottom1>\d))
      | (?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d.]*[\d/])
      | (?P<digits>{_DIGITS}(?:\.\d+)?|\.\d+)(?!\d|\.\d)
        (?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s?(?:x|×|\*|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>-?\d+)\}}?)?
    )
    (?:\s*(?P<percent>\\?%|percent\b)|\s+(?P<scale>{"|".join(_SCALES)})\b)?
    """,
    re.VERBOSE,
)
_LIST = re.compile(
    r"(?:[\s,;/|&+*×–%$€£¥₹()\[\]-]|:(?!\s)|\b(?:or|and|to|through)\b|\\(?:times|lor|vee|cup|cdot)\b|或|和|または|또는)*",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"(?:\bor|\\(?:lor|vee)|或)\s+(?:\w+\s+)?[$(]?$", re.IGNORECASE)
_EQUALS = re.compile(r"[\s$]*=[\s$]*")
_THIN_GROUPS = re.compile(r"(?<=\d)(?:[\u00a0\u202f\u2009]|\{,\}|\\,|\\!,)(?=\d{3})")
_TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]{0,80})\}")

_BEFORE = re.compile(
    r"(?:[\^_]\s?\{?|\\sqrt\s?(?:\[[^\[\]]{0,9}\])?\s?\{?|√\s?\(?|\\[dt]?frac\s?\{|\}\s?\{|[A-Za-z]\(|\||±"
    r"|(?:\\?\b(?:log|ln|sin|cos|tan|exp)|\\[A-Za-z]*(?:bar|hat|vec|line))\s?[({]?|(?:[<>≤≥≠]|!=|\\(?:geq?|leq?|neq?|gt|lt|pm|mp)\b)\s?"
    r"|(?:(?<![A-Za-z\\])[A-Za-z]|[)\]}])\s?(?:[-+*/×·÷]|\\(?:cdot|times|div)\b)\s?)$"
)
"""Matches before a number that is only part of an expression: a power, a root, a function, an inequality, a sum."""
_AFTER = re.compile(
    r"\s?(?:\^(?!\s?\{?\\circ)|√|π|_|·|÷|×|\\(?!text|mathrm|mbox|circ|degree|quad|right|end|[,;!:%$()\[\]\\ ])[A-Za-z]"
    r"|[*+/-]\s?(?:(?!a\s|I\s)[A-Za-z](?![A-Za-z])|[(\\])|[xyz](?![A-Za-z'])|!(?=\s?[)}=+*/$-]))"
    r"|[A-Za-z]?\(\S"
)
_ATTACHED = re.compile(r"[A-Za-z]+")
_ATTACHED_WORDS = frozenset(("st", "nd", "rd", "th", "am", "pm", "bc", "ad", "usd", "eur", "gbp", "jpy"))
_WORDS_BEFORE = re.compile(
    r"(?:\b(?:less|fewer|greater|more|larger|smaller|bigger|higher|lower)\s+than(?:\s+or\s+equal\s+to)?"
    r"|\bat\s+(?:least|most)|\bup\s+to|(?:^|\b(?:is|are|was|were)\s+)(?:over|under|above|below)"
    r"|\b(?:root|squares?|cubes?|power|logarithm|log|sine|cosine|tangent|reciprocal|inverse|factorial|half|halves|thirds?"
    r"|quarters?|fourths?|fifths?|tenths?|percent)\s+of|%\s+of|\b(?:half|twice|thrice|double|triple)"
    r"|\b(?:plus|times|(?:divided|multiplied)\s+by))\s+\W{0,3}$",
    re.IGNORECASE,
)
"""The same in words: a relation, a function, a multiple or a part of the number after it."""
_WORDS_AFTER = re.compile(
    r"[\s-]+(?:squared|cubed|factorial|dozens?|gross\b|to\s+the\s+(?:\w+\s+)?power"
    r"|or\s+(?:more|less|fewer|greater|larger|smaller|higher|lower|above|below)\b"
    r"|and\s+(?:a|one)\s+(?:half|third|quarter)\b)",
    re.IGNORECASE,
)
_MINUS = re.compile(
    r"(?P<both>\bplus\s+or\s+)?\b(?:negative|(?P<minus>minus))\s+(?=\\?[$€£¥₹]?\s?\.?\d)", re.IGNORECASE
)
_OPERAND = re.compile(r"(?:[\d)\]}]|\b[A-Za-z])\s+$")
_CLOSES_MATHEMATICS = re.compile(r"(?<!\\)\$(?!\s?\d)")
_CURRENCY_AFTER = re.compile(r"\s?([€£¥₹])(?!\s?\d)")
_SMALLER_UNIT = re.compile(r"\s*([A-Za-z]+)")
_CLAUSE_ENDS = re.compile(r"[.!?;]+(?=\s|$|[^\w\s.]|[^\x00-\x7f])|[,](?=\s)|\n|(?=\bbut\b)")
_DENIAL = r"(?:not|isn't|aren't|wasn't|never|neither|nor|cannot|can't)"
_DENIED_BEFORE = re.compile(
    rf"\b{_DENIAL}\b|\b(?:false|wrong|incorrect|untrue)\s+that\b|^\s*(?:is|was|could|might|may)\s+(?:it|this|that)\b|不是|并非|並非|ではない",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"\b(?:is|was|be)\s+(?:certainly\s+|definitely\s+)?not\b|\b(?:isn't|wasn't|wrong|incorrect|false|untrue|mistaken)\b"
    r"|不对|不對|错|錯|誤り|間違",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"\b(?:wrong|incorrect|false|untrue|mistake|mistaken)\b"
    r"|\b(?:not|isn't|wasn't)\s+(?:right|correct|true|the\s+(?:final\s+)?answer|it)\b|不对|不對|错|錯",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written: `value` before applying the percent sign, `percent` whether there is one."""

    value: Fraction
    percent: bool = False

    def matches(self, reference: Number, rel_tol: float) -> bool:
        """Return whether the numbers are equal, exactly when `reference` is whole. When only one has a percent sign,
        50% equals both 0.5 and 50."""
        if self.percent == reference.percent:
            return close(self.value, reference.value, rel_tol)
        mine, theirs = self.value, reference.value
        return close(mine, theirs, rel_tol) or (
            close(mine / 100, theirs, rel_tol) if self.percent else close(mine, theirs / 100, rel_tol)
        )


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit; None without a known unit."""

    number: Number
    unit: Unit | None

    def matches(self, reference: Quantity, rel_tol: float) -> bool:
        """Return whether the quantities are equal after unit conversion. A number without a unit is taken in the
        other's unit."""
        if self.unit is None or reference.unit is None or self.unit == reference.unit:
            return self.number.matches(reference.number, rel_tol)
        mine, theirs = self.number.value * self.unit.size, reference.number.value * reference.unit.size
        tolerance = Fraction(rel_tol) * abs(theirs)
        return self.unit.dimension == reference.unit.dimension and abs(mine - theirs) <= tolerance


def last_number(text: str) -> Number | None:
    """Return the number of `last_quantity`."""
    quantity = last_quantity(text)
    return None if quantity is None else quantity.number


def last_quantity(text: str) -> Quantity | None:
    """Return the last number stated by `text`, with its unit.

    None when there is none, or when it is one of several that are merely listed ("5, 6 or 7", "5-7"), a part of an
    expression that was not worked out ("3 + 4", "10^3", "3x", "twice 3"), a bound ("less than 12"), one side of a false
    equation ("13 = 12"), or is denied ("not 12", "12 is wrong") or asked about ("is it 12?"). "3 + 4 = 7" states 7, and
    "5 ft 3 in" 63 inches.
    """
    text = tidy(text)
    before, last = None, None
    for match in _stated(text):
        before, last = last, match
    if last is None or _is_fragment(text, last):
        return None
    number = _read(last)
    if number is None:
        return None
    stated = Quantity(number, _unit(text, last))
    if before is not None:
        together = _together(text, before, last)
        if together is not None:
            return together
        unit = unit_after(text, before.end())
        start = before.end() if unit is None else unit[1]
        listed = _LIST.fullmatch(text, start, last.start()) or _ALTERNATIVE.search(text, before.end(), last.start())
        equated = _EQUALS.fullmatch(text, start, last.start()) is not None and _stands_alone(text, before)
        first = _read(before)
        if (listed or equated) and not (first and Quantity(first, _unit(text, before)).matches(stated, 0.0)):
            return None
    return stated


def whole_number(text: str) -> Number | None:
    """Return the number when `text` is nothing else; otherwise None."""
    match = _NUMBER.fullmatch(_bare(text))
    return None if match is None else _read(match)


def whole_quantity(text: str) -> Quantity | None:
    """Return the number with a known unit when `text` is nothing else; otherwise None."""
    text = _bare(text)
    match = _NUMBER.match(text)
    if match is None:
        return None
    number = _read(match)
    unit = _currency(text, match) if match.end() == len(text) else unit_of(text[match.end() :])
    return None if number is None or unit is None else Quantity(number, unit)


def numbers_in(text: str) -> list[Fraction]:
    """Return every number in `text`, including parts of expressions and lists."""
    found = (_read(match) for match in _NUMBER.finditer(tidy(text)))
    return [number.value for number in found if number is not None]


def number_of(value: float | Fraction) -> Number | None:
    """Convert a Python number; None when it is not finite."""
    return Number(Fraction(value)) if math.isfinite(value) else None


def tidy(text: str) -> str:
    """Normalize how numbers are written in `text`: digit groups, minus signs (also in words), LaTeX text commands."""
    text = spaced(unify(_THIN_GROUPS.sub(",", text)))
    text = _TEXT_COMMAND.sub(r" \1 ", text).replace("\\left", "").replace("\\right", "")
    return _MINUS.sub(_minus_sign, text)


def close(value: Fraction, reference: Fraction, rel_tol: float) -> bool:
    """Return whether the values are equal: exactly when `reference` is whole, else to a relative tolerance."""
    if reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= Fraction(rel_tol) * abs(reference)


def _bare(text: str) -> str:
    text = tidy(text).strip().strip("*`").strip()
    if len(text) > 2 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text.rstrip(".").removesuffix("$").strip()


def _stated(text: str) -> Iterator[re.Match[str]]:
    """Iterate over numbers that are neither denied nor questioned, after the last retraction."""
    found: list[re.Match[str]] = []
    matches = list(_NUMBER.finditer(text))
    start, index = 0, 0
    for end in [*_CLAUSE_ENDS.finditer(text), None]:
        stop = len(text) if end is None else end.start()
        if end is not None and index < len(matches) and matches[index].start() < stop < matches[index].end():
            continue  # the comma or point of a number
        own: list[re.Match[str]] = []
        while index < len(matches) and matches[index].start() < stop:
            own.append(matches[index])
            index += 1
        clause = text[start:stop]
        if not own:
            if found and _RETRACTED.search(clause):
                found.clear()
        elif not _is_denied(text, start, stop, own) and not (end is not None and "?" in end[0]):
            found = [*found, *own][-MOST_KEPT:]
        else:
            denied = {_read(match) for match in own}
            if _DENIED_AFTER.search(clause) or _DENIED_BEFORE.search(clause):
                found = [match for match in found if _read(match) not in denied]
        start = stop if end is None else end.end()
    yield from found


def _is_denied(text: str, start: int, stop: int, own: list[re.Match[str]]) -> bool:
    return (
        _DENIED_BEFORE.search(text[start : own[-1].start()]) is not None
        or _DENIED_AFTER.search(text, own[-1].end(), stop) is not None
    )


def _is_fragment(text: str, match: re.Match[str]) -> bool:
    """Return whether a number is part of a larger expression."""
    start, end = max(0, match.start() - 40), match.end()
    if _BEFORE.search(text, start, match.start()) or _WORDS_BEFORE.search(text, start, match.start()):
        return True
    following = text[end:]
    if _WORDS_AFTER.match(following):
        return True
    if match["percent"] is None and _AFTER.match(following):
        emphasis = following.startswith("**") or (following[0] == "_" and not following[1:2].isalnum())
        return not emphasis
    if following.startswith("!") and not text[: match.start()].strip(" ($*") and not following[1:].strip(" )$*."):
        return True  # only a factorial; at the end of a sentence it is an exclamation mark
    attached = _ATTACHED.match(text, end)
    return attached is not None and attached[0].lower() not in _ATTACHED_WORDS and unit_after(text, end) is None


def _unit(text: str, match: re.Match[str]) -> Unit | None:
    found = unit_after(text, match.end())
    if found is not None:
        return found[0]
    symbol = _CURRENCY_AFTER.match(text, match.end())
    return unit_of(symbol[1]) if symbol else _currency(text, match)


def _currency(text: str, match: re.Match[str]) -> Unit | None:
    """Return the currency of the sign before a number; `$` is one unless a later `$` closes it as mathematics."""
    sign = match["currency"]
    if sign is None or (sign == "$" and _CLOSES_MATHEMATICS.search(text, match.end())):
        return None
    return unit_of("dollar" if sign.endswith("$") else sign.removeprefix("\\"))


def _together(text: str, large: re.Match[str], small: re.Match[str]) -> Quantity | None:
    """Combine a measure in two units ("5 ft 3 in", "5 dollars and 50 cents") into a quantity in the smaller unit; None
    for two separate numbers."""
    between = text[large.end() : small.start()]
    word = _SMALLER_UNIT.match(text, small.end())
    whole, part = _read(large), _read(small)
    if word is None or whole is None or part is None or len(between) > 40:
        return None
    one, other = unit_of(re.sub(r"\s+and\s+$", "", between)), unit_of(word[1])
    if one is None or other is None or one.dimension != other.dimension or part.value < 0:
        return None
    if part.value * other.size >= one.size:
        return None
    sign = -1 if whole.value < 0 else 1
    return Quantity(Number(whole.value * one.size / other.size + sign * part.value), other)


def _minus_sign(match: re.Match[str]) -> str:
    if match["both"]:
        return "±"
    return "- " if match["minus"] and _OPERAND.search(match.string, 0, match.start()) else "-"


def _stands_alone(text: str, match: re.Match[str]) -> bool:
    return re.search(r"[-+*/×·÷^(\\{]\s*$", text[: match.start()]) is None and not _BEFORE.search(text[: match.start()])


def _read(match: re.Match[str]) -> Number | None:
    part = match.groupdict()
    if any(len(text) > LONGEST for text in part.values() if text):
        return None
    if part["digits"] is not None:
        value = Fraction(part["digits"].replace(",", ""))
        power = int(part["exponent"] or part["power"] or 0)
        if abs(power) > LONGEST:
            return None
        value *= Fraction(10) ** power
    else:
        bottom = int(part["bottom"] or part["bottom1"] or part["under"])
        top = int(part["top"] or part["top1"] or part["over"])
        if bottom == 0 or (bottom > 1 and top % bottom == 0):
            return None  # a division that is left to do: "875 / 35" does not state 25
        value = Fraction(top, bottom) + int(part["whole"] or part["units"] or 0)
    if part["sign"] == "-" or part["sign2"]:
        value = -value
    return Number(value * 10 ** _SCALES.get(part["scale"] or "", 0), percent=part["percent"] is not None)
