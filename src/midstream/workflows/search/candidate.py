"""Candidates of a search, and the experience that later proposals learn from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from midstream.core.types import Task
from midstream.workflows.search.racing import differences

SIMILAR = 0.9
"""Similarity of two descriptions (difflib's ratio) from which they count as the same."""


MAX_FAILURES, MAX_FAILURE_CHARS = 8, 600
SHOWN_ELSEWHERE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A problem that a workflow got wrong."""

    problem: str
    answer: str
    expected: str
    kind: str = ""
    """Kind of the problem (`kind_of`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One workflow that a search tried. `score` is None when it was invalid, a repetition, or could not be scored."""

    number: int
    parent: int | None
    modification: str
    edit: str = ""
    """Name of the edit that made it; empty when a model did."""
    workflow: str | None
    """In the hybrid form; None when the proposal was not a workflow."""
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    """Mean score by task id."""
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
    """Of its evaluation and of its proposal, cached ones included."""
    seconds: float = 0.0
    """Time of its evaluation and of its proposal."""
    run_tokens: float = 0.0
    """Mean tokens of a run; 0 where unknown."""
    failures: tuple[Failure, ...] = ()
    """Some of the problems it got wrong, for proposals."""

    def as_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {
            **data,
            "problems": list(self.problems),
            "failures": list(data["failures"]),
            "scores": dict(self.scores),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        failures = tuple(Failure(**one) for one in data["failures"])
        return cls(**{**data, "problems": tuple(data["problems"]), "failures": failures})


class Experience:
    """What was tried, from which parent, and what it solved. `tasks` are those that candidates were scored on.

    Without `feedback` it holds only what a blind search may know: which workflows were tried, and the problems."""

    def __init__(self, candidates: Sequence[Candidate], tasks: Sequence[Task] = (), *, feedback: bool = True) -> None:
        self.candidates = tuple(candidates)
        self.tasks = {task.id: task for task in tasks}
        self.feedback = feedback
        self._by_number = {one.number: one for one in candidates}
        self._texts = {one.workflow for one in candidates if one.workflow is not None}

    def has(self, workflow: str) -> bool:
        """Whether a workflow, in the hybrid form, was tried."""
        return workflow in self._texts

    def tried(self, parent: int) -> list[tuple[str, float | None, float | None]]:
        """Modifications of `parent`, with its score and theirs, both on the tasks that both have."""
        children = [one for one in self.candidates if one.parent == parent]
        return [(one.modification, *self._both(self._by_number[parent], one)) for one in children]

    def is_known(self, parent: int, modification: str) -> bool:
        """Whether a modification of `parent` means the same as one that was tried: equal words in any order, or nearly
        the same text."""
        return any(_same(modification, one.modification) for one in self.candidates if one.parent == parent)

    def gains(self) -> list[tuple[Candidate, float]]:
        """Scored candidates with what they gained over their parents, on the tasks that both have."""
        found: list[tuple[Candidate, float]] = []
        for one in self.candidates:
            if one.parent is None or not self.feedback:
                continue
            gap = differences(one.scores, self._by_number[one.parent].scores)
            if gap:
                found.append((one, fmean(gap.values())))
        return found

    def by_kind(self, candidate: Candidate) -> dict[str, tuple[float, int]]:
        """Mean score of a candidate and number of tasks, by kind of problem."""
        found: dict[str, list[float]] = {}
        for task, score in candidate.scores.items():
            if task in self.tasks:
                found.setdefault(kind_of(self.tasks[task]), []).append(score)
        return {kind: (fmean(scores), len(scores)) for kind, scores in sorted(found.items())}

    def text(self, parent: int) -> str:
        """The experience as a prompt shows it: with `parent` first, then what helped other workflows."""
        if not self.feedback:
            return ""
        helped: list[str] = []
        other: list[str] = []
        for modification, before, after in self.tried(parent):
            if after is None or before is None:
                other.append(f"- {modification} (not a valid workflow)")
            elif after > before:
                helped.append(f"- {modification} ({before:.3f} -> {after:.3f})")
            else:
                other.append(f"- {modification} ({before:.3f} -> {after:.3f})")
        elsewhere = sorted(
            ((one, gain) for one, gain in self.gains() if one.parent != parent and gain > 0), key=lambda one: -one[1]
        )[:SHOWN_ELSEWHERE]
        parts: list[str] = []
        if helped:
            parts.append(
                "These changes of this workflow helped; a further one may build on them:\n" + "\n".join(helped)
            )
        if other:
            parts.append("These did not help; do not repeat them:\n" + "\n".join(other))
        if elsewhere:
            lines = "\n".join(f"- {one.modification} ({gain:+.3f})" for one, gain in elsewhere)
            parts.append("These changes helped other workflows:\n" + lines)
        return "\n".join(parts) or "Nothing was tried yet."

    @staticmethod
    def _both(parent: Candidate, child: Candidate) -> tuple[float | None, float | None]:
        shared = child.scores.keys() & parent.scores.keys()
        if not shared:
            return parent.score, child.score
        before, after = (fmean(one.scores[task] for task in shared) for one in (parent, child))
        return before, after


def kind_of(task: Task) -> str:
    """The kind of a problem: its metadata `problem_type`, else its kind."""
    return str(task.metadata.get("problem_type") or task.kind)


def _same(one: str, other: str) -> bool:
    words, others = (re.findall(r"\w+", text.lower()) for text in (one, other))
    if sorted(words) == sorted(others):
        return True
    return difflib.SequenceMatcher(None, " ".join(words), " ".join(others)).ratio() >= SIMILAR


def failure(problem: str, answer: str, expected: str, kind: str = "") -> Failure:
    """A failure with its texts cut to what a prompt shows."""
    texts = (
        text if len(text) <= MAX_FAILURE_CHARS else text[:MAX_FAILURE_CHARS] + "…"
        for text in (problem, answer, expected)
    )
    return Failure(**dict(zip(("problem", "answer", "expected"), texts, strict=True)), kind=kind)
