"""Unifies characters so that equal answers compare as equal: Unicode forms, superscripts, dashes, LaTeX spacing."""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_RAISED = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+")
_SIGNS = "+-.$€£¥₹"
_VULGAR = re.compile(r"(\d?)([¼-¾⅐-⅞])")
_SAME = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        "⁄": "/",
        "∕": "/",
        "。": ".",
        "｡": ".",
        "、": ",",
        "\u200b": None,  # zero-width space
        "\ufeff": None,  # byte order mark
        "\u00ad": None,  # soft hyphen
    }
)


def unify(text: str) -> str:
    """Normalize `text` to NFKC with one kind of dash and quote, and `^` before superscripts."""
    text = _VULGAR.sub(_fraction, text)
    text = _RAISED.sub(lambda raised: "^{" + raised[0].translate(_SUPERSCRIPTS) + "}", text)
    return unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME)


def spaced(text: str) -> str:
    """Insert spaces where a script without upper case (Chinese, Japanese, Korean, Thai, Arabic, ...) meets Latin
    letters or digits, because these scripts do not separate numbers from words."""
    if text.isascii():
        return text
    pieces: list[str] = []
    for before, character, after in zip(" " + text, text, text[1:] + " ", strict=False):
        one, other = _is_uncased_letter(before), _is_uncased_letter(character)
        meets = one != other and _is_latin_or_digit(before if other else character)
        if meets or (one and character in _SIGNS and after.isdigit()):
            pieces.append(" ")
        pieces.append(character)
    return "".join(pieces)


def _fraction(match: re.Match[str]) -> str:
    """Return a vulgar fraction in ASCII, separated from a preceding digit: NFKC would turn 1½ into 11/2."""
    fraction = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
    return f"{match[1]} {fraction}" if match[1] else fraction


def _is_uncased_letter(character: str) -> bool:
    return character.isalpha() and not character.isascii() and character.upper() == character.lower()


def _is_latin_or_digit(character: str) -> bool:
    return character.isdigit() or (character.isascii() and character.isalpha())
