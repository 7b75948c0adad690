"""Finds training tasks that occur in a test set: equal after normalisation, or near-duplicates.

Two texts are near-duplicates when the Jaccard similarity of their sets of word 3-grams is at least `threshold`. The
search is exact: two sets that are that similar share one of the rarest `n - ceil(threshold n) + 1` 3-grams of each
(prefix filtering; Chaudhuri, Ganti and Kaushik, ICDE 2006), so only those are indexed. Numbers count as words: the same
story with other numbers is a near-duplicate only when most of its 3-grams are equal.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

THRESHOLD = 0.6
WORDS = 3
COMMON_SHARE, COMMON_LEAST = 0.05, 5
"""A 3-gram in more than this share of the texts, and in at least this many, belongs to a template or an instruction and
does not count."""
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Leak:
    """A text that occurs among others: the indices of both, and the similarity, 1 for equal texts."""

    place: int
    other: int
    similarity: float


def normalise_text(text: str) -> str:
    """Return the text in lower case without accents, with single spaces between words and signs."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(_WORD.findall("".join(one for one in folded if not unicodedata.combining(one))))


def find_leaks(texts: Iterable[str], others: Sequence[str], threshold: float = THRESHOLD) -> list[Leak]:
    """Return the texts that occur among `others`, each with the most similar one. `threshold` is above 0 and at most
    1."""
    looked_for = list(texts)
    index = LeakIndex(others, threshold, looked_for)
    found = (index.find(text) for text in looked_for)
    return [Leak(place, *match) for place, match in enumerate(found) if match is not None]


def duplicates(texts: Sequence[str]) -> list[Leak]:
    """Return texts that equal an earlier one after normalisation."""
    first: dict[str, int] = {}
    return [
        Leak(place, earlier, 1.0)
        for place, text in enumerate(map(normalise_text, texts))
        if (earlier := first.setdefault(text, place)) != place
    ]


class LeakIndex:
    """An index of texts. `more` are further texts that show which 3-grams are common."""

    def __init__(self, texts: Sequence[str], threshold: float = THRESHOLD, more: Sequence[str] = ()) -> None:
        self._threshold = threshold
        plain = [normalise_text(text) for text in texts]
        self._equal = {text: place for place, text in reversed(list(enumerate(plain)))}
        whole = [_grams(text) for text in plain]
        self._counts = Counter(gram for grams in whole for gram in grams)
        self._counts.update(gram for text in more for gram in _grams(normalise_text(text)))
        self._common = max(COMMON_LEAST, int(COMMON_SHARE * (len(texts) + len(more))))
        self._grams = [self._telling(grams) for grams in whole]
        self._by_gram: dict[str, list[int]] = {}
        for place, grams in enumerate(self._grams):
            for gram in self._prefix(grams):
                self._by_gram.setdefault(gram, []).append(place)

    def find(self, text: str) -> tuple[int, float] | None:
        """Return index and similarity of the most similar text; None if none is similar enough."""
        plain = normalise_text(text)
        if plain in self._equal:
            return self._equal[plain], 1.0
        grams = self._telling(_grams(plain))
        candidates = {place for gram in self._prefix(grams) for place in self._by_gram.get(gram, ())}
        best: tuple[float, int] | None = None
        for place in candidates:
            similarity = _jaccard(grams, self._grams[place])
            if similarity >= self._threshold and (best is None or (similarity, -place) > best):
                best = similarity, -place
        return None if best is None else (-best[1], best[0])

    def _telling(self, grams: frozenset[str]) -> frozenset[str]:
        """Return the 3-grams that are not common to many texts."""
        return frozenset(gram for gram in grams if self._counts[gram] <= self._common)

    def _prefix(self, grams: frozenset[str]) -> list[str]:
        """Return the rarest 3-grams of a set, of which every similar set shares one. Unknown ones are the rarest."""
        least = math.ceil(self._threshold * len(grams) - 1e-9)  # 0.55 * 100 is above 55
        count = len(grams) - least + 1
        return sorted(grams, key=lambda gram: (self._counts[gram], gram))[:count] if grams else []


def _grams(text: str) -> frozenset[str]:
    words = text.split()
    if len(words) < WORDS:
        return frozenset([text]) if text else frozenset()
    return frozenset(" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
