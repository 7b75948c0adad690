"""`direct`: questions that need no tool, to train an agent not to call tools for everything. Finite, small.

The split key is the word (or the pair of words) a question is about.
"""

from __future__ import annotations

from collections.abc import Iterator

from midstream.core.seeds import derive_seed
from midstream.tasks.taskset import Draft, FiniteTaskSet, TaskSet, split_of

_WORDS = """
    river table garden window mountain bread silver candle forest yellow kitchen letter pencil horse summer winter
    orange bridge island market rabbit butter thunder music hammer pillow castle ticket basket button cloud stone
    paper spoon chair glass tiger lemon train beach clock dress eagle field grape honey juice knife lamp moon nest
    ocean paint queen rain salt tree uncle valley water acorn barn cup door engine fish goat hat ink jar key leaf
    milk nose oven pear rope ship tent violin wheel zebra anchor blanket cabin dinner elbow feather guitar helmet
"""
_OPPOSITES = (
    "hot cold, big small, up down, open closed, day night, left right, fast slow, happy sad, old young, wet dry, "
    "hard soft, full empty, early late, rich poor, high low, light dark, near far, strong weak, clean dirty, "
    "first last, win lose, push pull, loud quiet, long short, true false, start end, inside outside, above below, "
    "buy sell, give take, cheap expensive, thick thin, wide narrow, easy difficult, asleep awake, alive dead"
)


def direct(seed: int = 0) -> TaskSet:
    """The set `direct`."""
    return FiniteTaskSet.from_drafts("direct", _drafts(), seed)


def _drafts() -> Iterator[Draft]:
    for word in _WORDS.split():
        key = f"direct/{word}"
        yield Draft(question=f"Repeat this word: {word}", answer=word, key=key, entity=word)
        yield Draft(question=f"Which letter does the word {word} start with?", answer=word[0], key=key, entity=word)
        other = _longer_partner(word)
        if other:
            pair = [word, other] if derive_seed("direct", word) % 2 else [other, word]
            question = f"Which word is longer, {pair[0]} or {pair[1]}?"
            yield Draft(question=question, answer=max(pair, key=len), key=key, entity=word)
    for pair in _OPPOSITES.split(", "):
        one, other = pair.split()
        for asked, answer in ((one, other), (other, one)):
            yield Draft(question=f"What is the opposite of {asked}?", answer=answer, key=f"direct/{pair}", entity=asked)


def _longer_partner(word: str) -> str | None:
    """Return a word of the same split that is at least two letters longer."""
    split = split_of(f"direct/{word}")
    fitting = [
        other for other in _WORDS.split() if len(other) >= len(word) + 2 and split_of(f"direct/{other}") == split
    ]
    return fitting[derive_seed("longer", word) % len(fitting)] if fitting else None
