"""Compares short texts: by SQuAD's rules, or by stricter rules that keep meaningful symbols."""

from __future__ import annotations

import re
import string
import unicodedata

from midstream.rewards.characters import unify

MOST_WRAPPING = 400
"""Maximum ignored characters around a short answer."""
_SYMBOLS = frozenset("+-*/=<>#%^&@_~|\\$")
"""Meaningful ASCII punctuation: C++ is not C. All Unicode symbols (category S) are meaningful too."""
_BRACKETS = frozenset("()[]{}")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WRAPPING_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|tt)?|math(?:rm|bf|it|sf|tt)|emph|mbox)\s*\{([^{}]*)\}")
_BULLET = re.compile(r"^(?:#+|[>*•-])\s+(?=[^\W\d_]{2})")
_TIGHT = re.compile(r"[\w+\-*/=<>^][(\[{]|[(\[{]\s{0,3}[-+]?[\d.]|[\d.][)\]}]")
_PAIRS = (
    ("**", "**"),
    ("__", "__"),
    ("```", "```"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ('"', '"'),
    ("'", "'"),
    ("*", "*"),
    ("_", "_"),
    ("「", "」"),
    ("『", "』"),
    ("《", "》"),
    ("(", ")"),
)


def normalise(text: str) -> str:
    """Apply SQuAD's normalization: lower case, no punctuation, no articles, single spaces.

    Source: Rajpurkar et al. 2016 (arXiv 1606.05250), the official evaluation script; with Unicode punctuation in
    addition to ASCII as in MLQA (Lewis et al. 2020, arXiv 1910.07475), after NFKC.
    """
    text = "".join(c for c in unify(text).lower() if not _is_punctuation(c))
    text = unicodedata.normalize("NFKC", text)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def same_text(text: str, reference: str) -> bool:
    """Return whether `text` is equal to `reference`.

    Ignores case, spaces, articles before a word, quotes, markdown and punctuation between words, but no meaningful
    symbol: `C++`, `x-1`, `1.5`, `10:30`, `Vitamin A`.
    """
    if len(text) > MOST_WRAPPING + 4 * len(reference):
        return False
    expected = canonical(reference)
    return canonical(text) == expected if expected else text.strip() == reference.strip() != ""


def canonical(text: str) -> str:
    """Return the canonical spelling, which is equal for texts that `same_text` considers the same."""
    text = _THOUSANDS.sub("", unwrapped(unify(text)))
    # Brackets after a space hold words: "Paris (France)".
    tight = _TIGHT.search(text) is not None
    words = "".join(_kept(text, place, tight) for place in range(len(text))).split()
    return " ".join(word for place, word in enumerate(words) if not _is_article(word, place, len(words))).casefold()


def unwrapped(text: str) -> str:
    """Remove quotes, markdown, LaTeX text and math delimiters, and a final full stop around an answer."""
    before = None
    text = _WRAPPING_COMMAND.sub(r" \1 ", text)
    while before != text:
        before = text = text.strip()
        text = _BULLET.sub("", text)
        text = text.rstrip(" .,;") or text
        if len(text) > 3 and text[-1] in "!?:" and text[-3:-1].isalpha():
            text = text[:-1]
        for opening, closing in _PAIRS:
            inner = text[len(opening) : len(text) - len(closing)]
            if (
                len(text) > len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
                and inner.strip()
                and closing not in inner
                and opening not in inner
            ):
                text = inner
                break
    return text


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _kept(text: str, place: int, tight: bool) -> str:
    """Return the character at `place` as it enters a comparison."""
    character = text[place]
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if character in "-.'" and before.isalpha() and after.isalpha():
        whole = character == "." and text[place - 2 : place].isalpha() and text[place + 1 : place + 3].isalpha()
        return "." if whole and place >= 2 and len(text) > place + 2 else ""  # example.com, but US for U.S.
    if character in _SYMBOLS or unicodedata.category(character).startswith("S"):
        return character
    if not _is_punctuation(character):
        return character
    if character in _BRACKETS:
        return character if tight else " "
    between_digits = before.isdigit() and after.isdigit()
    of_an_operator = character in "!:" and (after == "=" or before == "=")
    return character if between_digits or of_an_operator or (character == "." and after.isdigit()) else " "


def _is_article(word: str, place: int, count: int) -> bool:
    """Return whether a word is an article: it stands before another word, and `A` within a text is a name (vitamin A
    deficiency)."""
    if place == count - 1:
        return False
    return word.lower() in ("an", "the") or word == "a" or (word == "A" and place == 0)
