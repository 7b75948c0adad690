"""`search`: BM25 over a small bundled knowledge base of one-sentence facts about countries and large cities.

The facts are generated from `midstream.tasks.geography` (GeoNames data, CC BY 4.0). The index is built once per
process, on the first search. Accents, case and word order do not matter; ties keep the order of the facts.
"""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import Any

from midstream.tasks.geography import cities, countries, plain
from midstream.tools.declare import Tool, tool
from midstream.tools.errors import ToolError

MAX_QUERY_WORDS = 32

_WORD = re.compile(r"[a-z0-9]+")
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are at be by can did do does find for from give has have how i in is it its km km2 kilometers
        kilometres many me much of on or please s search show square tell that the there this to was were what when
        where which who with you""",
    )
)
_MEANT_BY = {
    "area": "areas big large size surface",
    "capital": "capitals",
    "currency": "currencies money",
    "population": "inhabitants live lives people populated populations populous residents",
}
_SYNONYMS = {word: meant for meant, words in _MEANT_BY.items() for word in words.split()}
_ATTRIBUTES = frozenset({"area", "capital", "city", "code", "continent", "country", "currency", "population"})
"""Words for an attribute, not a subject. A query of these alone matches hundreds of facts equally: no result."""


def search_tool(k: int = 1) -> Tool[[str], str]:
    """Return a `search` tool that returns the best `k` facts, one per line, best first."""

    @tool(name="search")
    def search(query: str) -> str:
        """Look up a fact about a country or city, such as: capital of Peru."""
        found = best_facts(query, k)
        if not found:
            raise ToolError("no result")
        return "\n".join(found)

    return search


search = search_tool()


def best_facts(query: str, k: int = 1) -> list[str]:
    """Return the `k` best-matching facts; empty if the query contains no known subject."""
    with _BUILDING:
        index, passages, vocabulary = _index()
    words = [word for word in dict.fromkeys(_words(query[:2000])) if word in vocabulary][:MAX_QUERY_WORDS]
    if all(word in _ATTRIBUTES for word in words):
        return []
    scores = index.get_scores(words)
    order = (-scores).argsort(kind="stable")[:k].tolist()
    return [passages[position] for position in order if scores[position] > 0]


def facts() -> list[tuple[str, str]]:
    """Return the knowledge base: each fact as its subject (`The area of Peru`) and its value (`1285220 km2`)."""
    result: list[tuple[str, str]] = []
    for country in countries():
        values = {
            "capital": country.capital,
            "population": str(country.population) if country.population else "",
            "area": f"{country.area_km2} km2" if country.area_km2 else "",
            "currency": country.currency,
            "currency code": country.currency_code,
            "continent": country.continent,
        }
        result += [(f"The {name} of {country.in_text}", value) for name, value in values.items() if value]
    for city in cities():
        result.append((f"The population of {city.name}", str(city.population)))
        result.append((f"The country of {city.name}", city.country.in_text))
    return result


_BUILDING = threading.Lock()


@lru_cache(maxsize=1)
def _index() -> tuple[Any, list[str], frozenset[str]]:
    import bm25s

    known = facts()
    documents = [_document(subject, value) for subject, value in known]
    index = bm25s.BM25(k1=1.2, b=0.4)
    index.index(documents, show_progress=False)
    vocabulary = frozenset(word for document in documents for word in document)
    return index, [f"{subject} is {value}." for subject, value in known], vocabulary


def _document(subject: str, value: str) -> list[str]:
    """Return the subject's words twice, because a fact's subject matters more than its value, and only new words of the
    value: "The capital of Monaco is Monaco." must not outrank Monaco's population."""
    words = _words(subject)
    return words * 2 + [word for word in _words(value) if word not in words]


def _words(text: str) -> list[str]:
    folded = re.sub(r"'s\b", "", plain(text).lower())
    joined: str = re.sub(r"'|(?<=\b[a-z])\.(?=[a-z]\b)", "", folded)
    words: list[str] = _WORD.findall(joined)
    return [_SYNONYMS.get(word, word) for word in words if word not in _STOPWORDS]
