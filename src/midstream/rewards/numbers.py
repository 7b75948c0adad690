"""Reading numbers out of text: signs, thousands, decimals, exponents, fractions, currencies, percent, "million".

Number words ("twelve"), roman numerals and decimal commas are not read. Units are passed over, not converted.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 300
"""Digits and powers of ten beyond this are not read: nobody means them, and arithmetic on them never ends."""

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,30}(?![\d,])|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w^.\\])(?<![A-Za-z_]-)                    # not inside a word, a version or an exponent: CO2, covid-19, m^2
    (?P<sign>(?<![\d)}}\]])[-+])?(?:[$€£¥₹]\s?)?(?P<sign2>-)?
    (?: \\[dt]?frac\{{(?P<top>-?\d+)\}}\{{(?P<bottom>\d+)\}}
      | (?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d.]*[\d/])
      | (?P<digits>{_DIGITS}(?:\.\d+)?|\.\d+)(?!\d|\.\d)
        (?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s?(?:x|×|\*|\\times)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>-?\d+)\}}?)?
    )
    (?:\s*(?P<percent>\\?%|percent\b)|\s+(?P<scale>{"|".join(_SCALES)})\b)?
    """,
    re.VERBOSE,
)
_LIST = re.compile(r"(?:[\s,;/|&+*×–%$€£¥₹()\[\]-]|:(?!\s)|\b(?:or|and|to|through)\b|\\times)*")
_THIN_GROUPS = re.compile(r"(?<=\d)(?:[\u00a0\u202f\u2009]|\{,\}|\\,|\\!,)(?=\d{3})")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written: `value` before the percent sign took effect, which `percent` says was there."""

    value: Fraction
    percent: bool = False

    def matches(self, reference: Number, rel_tol: float) -> bool:
        """Equal, exactly when `reference` is whole. 50% is 0.5 and is also 50 when only one of the two has the sign."""
        if self.percent == reference.percent:
            return _close(self.value, reference.value, rel_tol)
        mine, theirs = self.value, reference.value
        return _close(mine, theirs, rel_tol) or (
            _close(mine / 100, theirs, rel_tol) if self.percent else _close(mine, theirs / 100, rel_tol)
        )


def last_number(text: str) -> Number | None:
    """The last number in `text`; None when there is none, or when it is one of several that are merely listed.

    "3 + 4 = 7" says 7. "5, 6 or 7", "5-7" and "3 + 4" do not say any.
    """
    text = _tidy(text)
    last, before = None, None
    for match in _NUMBER.finditer(text):
        last, before = match, last
    if last is None:
        return None
    number = _read(last)
    if before is not None and _LIST.fullmatch(text, before.end(), last.start()) and _read(before) != number:
        return None
    return number


def whole_number(text: str) -> Number | None:
    """The number that `text` is, and nothing else besides; None when it is something else."""
    match = _NUMBER.fullmatch(_tidy(text).strip().strip("$").rstrip("."))
    return None if match is None else _read(match)


def number_of(value: float | Fraction) -> Number | None:
    """A Python number; None when it is not finite."""
    return Number(Fraction(value)) if math.isfinite(value) else None


def _tidy(text: str) -> str:
    return _THIN_GROUPS.sub(",", text).replace("−", "-")


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
        bottom = int(part["bottom"] or part["under"])
        if bottom == 0:
            return None
        value = Fraction(int(part["top"] or part["over"]), bottom) + int(part["whole"] or 0)
    if part["sign"] == "-" or part["sign2"]:
        value = -value
    return Number(value * 10 ** _SCALES.get(part["scale"] or "", 0), percent=part["percent"] is not None)


def _close(value: Fraction, reference: Fraction, rel_tol: float) -> bool:
    if reference.denominator == 1:
        return value == reference
    return abs(value - reference) <= Fraction(rel_tol) * abs(reference)
