"""`search`: returns the passages of an index that match a query best.

An index is anything with the method of `SearchIndex`. The default is BM25 over a small bundled knowledge base of
one-sentence facts about countries and large cities; `search_documents` creates one from your own texts.

The facts are generated from `midstream.tasks.geography` (GeoNames data, CC BY 4.0). The index is built once per
process, on the first search. Accents, case and word order do not matter; ties keep the order of the facts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tasks.geography import cities, countries, plain
from midstream.tools.declare import Tool, tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset

MAX_QUERY_WORDS = 32
LIMITS = ("finds passages by their words, not by what they mean",)

_WORD = re.compile(r"[a-z0-9]+")
_STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are at be by can did do does find for from give has have how i in is it its km km2 kilometers
        kilometres many me much of on or please s search show square tell that the there this to was were what when
        where which who with you""",
    )
)
_WORDS_FOR = {
    "area": "areas big large size surface",
    "capital": "capitals",
    "currency": "currencies money",
    "population": "inhabitants live lives people populated populations populous residents",
}
_SYNONYMS = {word: standard for standard, words in _WORDS_FOR.items() for word in words.split()}
_ATTRIBUTES = frozenset({"area", "capital", "city", "code", "continent", "country", "currency", "population"})
"""Words for an attribute, not a subject. A query of these alone matches hundreds of facts equally: no result."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found, and its source."""

    text: str
    source: str = ""
    score: float = 0.0


class SearchIndex(Protocol):
    """The index behind `search`."""

    def best(self, query: str, k: int) -> Sequence[Passage]:
        """Return up to `k` passages that match `query`, best first. Called in a thread."""
        ...


class SearchSettings(Config):
    """`flow.tool_settings.search`."""

    k: int = Field(default=1, ge=1)
    """Number of passages in a result."""
    documents: str | None = None
    """Texts to search instead of the bundled facts: a JSON-lines file with `text` and optionally `id`; a folder of
    `.txt` and `.md` files, in which each paragraph is a passage; or `package.module:attribute`, a list of texts or a
    function that returns one."""
    index: str | None = None
    """Your own index, as `package.module:attribute`: an object with the method `best(query, k)`, or a function that
    returns one."""
    description: str = "Search the documents."
    """Description of the tool with `documents` or an `index`, for the agent."""

    @model_validator(mode="after")
    def _one_source(self) -> SearchSettings:
        if self.documents is not None and self.index is not None:
            raise ValueError("set documents or index, not both")
        return self


def search_tool(k: int = 1) -> Tool[[str], str]:
    """Return a `search` tool over the bundled facts that returns the best `k`, one per line, best first."""

    @tool(
        name="search",
        idempotent=True,
        timeout_s=60,  # the first call of a process builds the index
        returns="facts",
        limits=LIMITS,
        best_practices=["name one attribute of one country or city"],
        examples=[{"query": "capital of Peru"}],
    )
    def search(query: str) -> str:
        """Look up a fact about a country or city, such as: capital of Peru."""
        found = best_facts(query, k)
        if not found:
            raise ToolError("no result")
        return "\n".join(found)

    return search


def index_tool(index: SearchIndex, k: int, description: str) -> Tool[[str], ToolResult]:
    """Return a `search` tool over `index`; each passage of a result keeps its source."""

    def search(query: str) -> ToolResult:
        found = index.best(query, k)
        if not found:
            raise ToolError("no result")
        return ToolResult(tuple(ToolContent(kind="text", text=one.text, source=one.source) for one in found))

    search.__doc__ = description
    practices = ["name what the passage must contain"]
    return tool(name="search", idempotent=True, returns="passages", limits=LIMITS, best_practices=practices)(search)


def _search_toolset(settings: SearchSettings) -> FunctionToolset:
    from midstream.tools.search_index import load_index, search_documents

    if settings.documents is not None:
        index: SearchIndex = search_documents(settings.documents)
    elif settings.index is not None:
        index = load_index(settings.index)
    else:
        return FunctionToolset([search_tool(settings.k)])
    return FunctionToolset([index_tool(index, settings.k, settings.description)])


search = search_tool()
configured_search = ToolKind(SearchSettings, _search_toolset, default=search)


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
