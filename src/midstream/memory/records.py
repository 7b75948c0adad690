"""Working memory with limited room: typed records of one trajectory, of which the most useful ones are shown.

Like a cache: what is recent or fits the question at hand stays in view, the rest is kept but not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_WORD = re.compile(r"[^\W_]+")
RECENCY_HALF_LIFE = 3.0
"""Records after which the share of recency in a record's score is halved."""
RELEVANCE_WEIGHT = 2.0
"""Weight of the share of the question's words that a record holds, against a recency of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkingRecord:
    """What one action of a trajectory was for and what came of it."""

    sub_goal: str = ""
    tool: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""
    verdict: str = ""
    error: str = ""

    @property
    def text(self) -> str:
        """The record as a prompt shows it."""
        call = f"{self.tool}({json.dumps(dict(self.arguments), ensure_ascii=False)})" if self.tool else ""
        outcome = f"error: {self.error}" if self.error else self.result
        exchange = " -> ".join(part for part in (call, outcome) if part)
        return "; ".join(part for part in (self.sub_goal, exchange, self.verdict) if part)


@dataclass(slots=True)
class WorkingRecords:
    """Records of one trajectory. `count_tokens` measures text, `budget` limits the tokens in view."""

    count_tokens: Callable[[str], int]
    budget: int = 512
    records: list[WorkingRecord] = field(default_factory=list)
    """All records, oldest first."""

    def add(self, record: WorkingRecord) -> None:
        """Remember `record`."""
        self.records.append(record)

    def view(self, query: str) -> list[WorkingRecord]:
        """The records to show for `query`, oldest first: the best by recency plus relevance that fit the budget. The
        latest one is always among them."""
        if not self.records:
            return []
        last = len(self.records) - 1
        wanted = set(_words(query))
        scores = [
            0.5 ** ((last - place) / RECENCY_HALF_LIFE) + RELEVANCE_WEIGHT * _overlap(wanted, record.text)
            for place, record in enumerate(self.records)
        ]
        order = sorted(range(len(self.records)), key=lambda place: (place != last, -scores[place], -place))
        chosen: list[int] = []
        left = self.budget
        for place in order:
            tokens = self.count_tokens(self.records[place].text)
            if tokens <= left or place == last:
                chosen.append(place)
                left -= tokens
        return [self.records[place] for place in sorted(chosen)]

    def text(self, query: str) -> str:
        """`view` as numbered lines; numbers are those of all records."""
        shown = self.view(query)
        places = {id(record): number for number, record in enumerate(self.records, 1)}
        return "\n".join(f"{places[id(record)]}. {record.text}" for record in shown)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _overlap(wanted: set[str], text: str) -> float:
    """Share of the `wanted` words that `text` holds."""
    return len(wanted & set(_words(text))) / len(wanted) if wanted else 0.0
