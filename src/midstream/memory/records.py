"""Working memory of one trajectory: typed records, of which the most useful ones that fit a token budget are shown.

Works like a cache: records that are recent or match the current question are shown; the others are kept but not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_WORD = re.compile(r"[^\W_]+")
RECENCY_HALF_LIFE = 3.0
"""Number of newer records that halves the recency of a record."""
RELEVANCE_WEIGHT = 2.0
"""Weight of the share of the question's words that a record contains, relative to a recency of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingRecord:
    """One action of a trajectory: its goal, its call and its result."""

    sub_goal: str = ""
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    verdict: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        """Return the record as a prompt shows it."""
        call = f"{self.tool}({json.dumps(dict(self.arguments), ensure_ascii=False)})" if self.tool else ""
        outcome = f"error: {self.error}" if self.error else self.result
        exchange = " -> ".join(part for part in (call, outcome) if part)
        return "; ".join(part for part in (self.sub_goal, exchange, self.verdict) if part)


@dataclass(slots=True)
class WorkingRecords:
    """Records of one trajectory. `count_tokens` measures text; `budget` limits the tokens shown."""

    count_tokens: Callable[[str], int]
    budget: int = 512
    records: list[WorkingRecord] = field(default_factory=list)
    """All records, oldest first."""

    def add(self, record: WorkingRecord) -> None:
        """Append `record`."""
        self.records.append(record)

    def view(self, query: str) -> list[WorkingRecord]:
        """Return the records to show for `query`, oldest first: those with the highest recency plus relevance that fit
        the budget. The latest record is always included."""
        return [self.records[place] for place in self._chosen(query)]

    def text(self, query: str) -> str:
        """Return `view` as lines, numbered by position among all records. Further lines of a record are indented, so
        that no result can pose as another record."""
        return "\n".join(map(self._numbered, self._chosen(query)))

    def _chosen(self, query: str) -> list[int]:
        """Return the places of the records to show."""
        last = len(self.records) - 1
        query_words = set(_words(query))
        scores = [
            0.5 ** ((last - place) / RECENCY_HALF_LIFE) + RELEVANCE_WEIGHT * _overlap(query_words, record.text)
            for place, record in enumerate(self.records)
        ]
        order = sorted(range(len(self.records)), key=lambda place: (place != last, -scores[place], -place))
        chosen: list[int] = []
        left = self.budget
        for place in order:
            tokens = self.count_tokens(f"{self._numbered(place)}\n")
            if tokens <= left or place == last:
                chosen.append(place)
                left -= tokens
        return sorted(chosen)

    def _numbered(self, place: int) -> str:
        text = "\n   ".join(self.records[place].text.splitlines())
        return f"{place + 1}. {text}"


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _overlap(query_words: set[str], text: str) -> float:
    """Return the share of `query_words` that `text` contains."""
    return len(query_words & set(_words(text))) / len(query_words) if query_words else 0.0
