"""Candidates of a search, and the experience that later proposals learn from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from midstream.workflows import ir

SIMILAR = 0.9
"""Similarity of two descriptions (difflib's ratio) from which they count as the same."""


MAX_FAILURES, MAX_FAILURE_CHARS = 8, 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A problem that a workflow got wrong."""

    problem: str
    answer: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One workflow that a search tried. `score` is None when it was invalid, a repetition, or could not be scored."""

    number: int
    parent: int | None
    modification: str
    workflow: str | None
    """In the hybrid form; None when the proposal was not a workflow."""
    score: float | None = None
    low: float = 0.0
    high: float = 1.0
    stopped: bool = False
    """Given up before all tasks were run."""
    problems: tuple[str, ...] = ()
    tokens: int = 0
    """Tokens of its evaluation and of its proposal, cached ones included."""
    unknown_tokens: bool = False
    cost_usd: float | None = 0.0
    model_calls: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    """Some of the problems it got wrong, for proposals."""

    def as_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {**data, "problems": list(self.problems), "failures": list(data["failures"])}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        failures = tuple(Failure(**one) for one in data["failures"])
        return cls(**{**data, "problems": tuple(data["problems"]), "failures": failures})


class Experience:
    """What was tried from which parent, and whether it helped."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = {one.number: one for one in candidates}

    def tried(self, parent: int) -> list[tuple[str, float | None, float | None]]:
        """Modifications of `parent`, with its score and theirs."""
        before = self._candidates[parent].score
        children = [one for one in self._candidates.values() if one.parent == parent]
        return [(one.modification, before, one.score) for one in children]

    def is_known(self, parent: int, modification: str) -> bool:
        """Whether a modification of `parent` means the same as one that was tried: equal words in any order, or nearly
        the same text."""
        return any(_same(modification, tried) for tried, _, _ in self.tried(parent))

    def text(self, parent: int) -> str:
        """The experience with `parent` as a prompt shows it."""
        helped: list[str] = []
        other: list[str] = []
        for modification, before, after in self.tried(parent):
            if after is None or before is None:
                other.append(f"- {modification} (not a valid workflow)")
            elif after > before:
                helped.append(f"- {modification} ({before:.3f} -> {after:.3f})")
            else:
                other.append(f"- {modification} ({before:.3f} -> {after:.3f})")
        parts: list[str] = []
        if helped:
            parts.append(
                "These changes of this workflow helped; a further one may build on them:\n" + "\n".join(helped)
            )
        if other:
            parts.append("These did not help; do not repeat them:\n" + "\n".join(other))
        return "\n".join(parts) or "Nothing was tried yet."


def known_workflows(candidates: Sequence[Candidate], read: Any) -> set[ir.Workflow]:
    """The workflows of all candidates. `read` reads the hybrid form."""
    return {read(one.workflow) for one in candidates if one.workflow is not None}


def _same(one: str, other: str) -> bool:
    words, others = (re.findall(r"\w+", text.lower()) for text in (one, other))
    if sorted(words) == sorted(others):
        return True
    return difflib.SequenceMatcher(None, " ".join(words), " ".join(others)).ratio() >= SIMILAR


def failure(problem: str, answer: str, expected: str) -> Failure:
    """A failure with its texts cut to what a prompt shows."""
    texts = (
        text if len(text) <= MAX_FAILURE_CHARS else text[:MAX_FAILURE_CHARS] + "…"
        for text in (problem, answer, expected)
    )
    return Failure(**dict(zip(("problem", "answer", "expected"), texts, strict=True)))
