"""One spelling for each character, so that answers compare by what they say: Unicode forms, superscripts, dashes, LaTeX
spacing."""

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
    """`text` in NFKC, with one kind of dash and quote, and `^` before what was raised."""
    text = _VULGAR.sub(_fraction, text)
    text = _RAISED.sub(lambda raised: "^{" + raised[0].translate(_SUPERSCRIPTS) + "}", text)
    return unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME)


def spaced(text: str) -> str:
    """`text` with a space where a script without upper case (Chinese, Japanese, Korean, Thai, Arabic, ...) meets Latin
    letters or digits: these scripts do not part words as a number would have it."""
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
    """A vulgar fraction in ASCII, apart from a digit before it: NFKC would make 11/2 of 1½."""
    fraction = unicodedata.normalize("NFKC", match[2]).replace("⁄", "/")
    return f"{match[1]} {fraction}" if match[1] else fraction


def _is_uncased_letter(character: str) -> bool:
    return character.isalpha() and not character.isascii() and character.upper() == character.lower()


def _is_latin_or_digit(character: str) -> bool:
    return character.isdigit() or (character.isascii() and character.isalpha())
