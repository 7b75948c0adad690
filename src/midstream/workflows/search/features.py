"""Properties of a problem's text that a workflow can branch on, and the one that best separates what two workflows
solve.

A decision stump over words: the simplest model that selects an algorithm by the problem (Rice 1976). Its gain is
measured on the tasks that both workflows were scored on, and is smaller for a rule that was chosen among many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from midstream.workflows import ir

LEAST_SHARE = 0.1
"""A feature that fewer problems have, or that fewer lack, is none."""
MOST_WORD_CHARS = 30


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether a problem contains `word`, or without a word whether it has more than `length` characters."""

    word: str = ""
    length: int = 0

    def of(self, problem: str) -> bool:
        """Whether a problem has it."""
        return self.word in problem if self.word else len(problem) > self.length

    def condition(self) -> ir.Expression:
        """The same as an expression of a workflow."""
        problem = ir.Input("problem")
        if self.word:
            return ir.Function("in", (ir.Constant(self.word), problem))
        return ir.Function(">", (ir.Function("len", (problem,)), ir.Constant(self.length)))

    def __str__(self) -> str:
        return f"with {self.word!r}" if self.word else f"longer than {self.length} characters"


@dataclass(frozen=True, slots=True)
class Rule:
    """Where the problem has the feature, or lacks it if not `present`, another workflow is better."""

    feature: Feature
    present: bool
    gain: float
    """Lower end of an interval of the mean gain in score over all tasks: the mean less two standard errors."""

    def holds(self, problem: str) -> bool:
        """Whether the other workflow is used."""
        return self.feature.of(problem) is self.present

    def __str__(self) -> str:
        return f"problems {self.feature}" if self.present else f"problems not {self.feature}"


def words(problem: str) -> set[str]:
    """Words of a problem, without those of digits alone, and its punctuation."""
    found = re.findall(r"\w+|[^\w\s]", problem)
    return {one for one in found if len(one) <= MOST_WORD_CHARS and not one.isdigit()}


def features(problems: Sequence[str]) -> list[Feature]:
    """Features that divide the problems, one for each division: words first, the longest and first by alphabet."""
    least = max(2.0, LEAST_SHARE * len(problems))
    known = sorted({word for one in problems for word in words(one)}, key=lambda one: (-len(one), one))
    lengths = sorted(len(one) for one in problems)
    quartiles = [lengths[len(lengths) * part // 4] for part in (1, 2, 3)] if lengths else []
    found: dict[tuple[bool, ...], Feature] = {}
    for feature in [*(Feature(word) for word in known), *(Feature(length=length) for length in quartiles)]:
        has = tuple(feature.of(one) for one in problems)
        if least <= sum(has) <= len(has) - least:
            found.setdefault(has, feature)
    return list(found.values())


def best_rule(gaps: Mapping[str, float], problems: Mapping[str, str]) -> Rule | None:
    """The rule by which a workflow that scores `gaps` more than another, by task, is used in place of it. None when no
    rule surely gains. `problems` are texts by task."""
    tasks = [task for task in gaps if task in problems]
    best: Rule | None = None
    for feature in features([problems[task] for task in tasks]):
        for present in (True, False):
            rule = Rule(feature, present, 0.0)
            side = [gaps[task] if rule.holds(problems[task]) else 0.0 for task in tasks]
            mean = sum(side) / len(side)
            squares = sum(gap * gap for gap in side) / len(side) - mean * mean
            gain = mean - 2 * (squares / len(side)) ** 0.5
            if gain > (best.gain if best else 0.0):
                best = replace(rule, gain=gain)
    return best
