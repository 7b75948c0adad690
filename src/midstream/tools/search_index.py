"""Indexes for `search`: BM25 over your own texts, and an index named by a config."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from midstream.core.errors import ConfigError
from midstream.tools.search import Passage, SearchIndex
from midstream.tools.texts import load_texts

_WORD = re.compile(r"[^\W_]+")


class Bm25Index:
    """BM25 over the lower-case words of `passages`, which stay in memory. Ties keep the order of passages."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s

        self._passages = list(passages)
        documents = [_words(passage.text) for passage in self._passages]
        self._known = {word for document in documents for word in document}
        self._index = bm25s.BM25()
        if self._known:
            self._index.index(documents, show_progress=False)

    def best(self, query: str, k: int) -> Sequence[Passage]:
        words = [word for word in dict.fromkeys(_words(query[:2000])) if word in self._known]
        if not words:
            return []
        scores: Any = self._index.get_scores(words)
        order = (-scores).argsort(kind="stable")[:k].tolist()
        return [
            Passage(self._passages[place].text, self._passages[place].source, float(scores[place]))
            for place in order
            if scores[place] > 0
        ]


@lru_cache(maxsize=8)
def search_documents(path: str) -> Bm25Index:
    """Return the index of the texts that `path` names (`texts.load_texts`). Built once per process."""
    return Bm25Index([Passage(row["text"], str(row["id"])) for row in load_texts(path, "search")])


def load_index(name: str) -> SearchIndex:
    """Return the index at `package.module:attribute`."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"search: cannot import the index '{name}': {error}", "is it on PYTHONPATH?") from None
    made = found if hasattr(found, "best") and not isinstance(found, type) else found()
    if not callable(getattr(made, "best", None)):
        raise ConfigError(f"search: '{name}' has no method best(query, k)", "see midstream.tools.search.SearchIndex")
    return made


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
