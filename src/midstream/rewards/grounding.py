"""Checks an answer against the agent's actions: unused searches, skipped plan steps, contradictions to tool results.

All three components count errors, so their weights are negative. They compare only words and numbers: a search that
only ruled something out counts as unused, and an answer reasoned from a result may count as inconsistent.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from midstream.core.types import Step, Task, ToolCall, Trajectory
from midstream.rewards.answers import extract_answer
from midstream.rewards.builtin import is_search
from midstream.rewards.characters import spaced, unify
from midstream.rewards.choices import choice_of_reference
from midstream.rewards.components import StepRewards, at_calls, component, needs_of
from midstream.rewards.numbers import last_number, numbers_in
from midstream.rewards.text_match import normalise

_COMMON = frozenset(
    "about also been from have into more most than that their there they this were what when which with".split()  # noqa: SIM905
)
"""Common words of four or more letters, which are ignored like all shorter words."""
_VERDICTS = frozenset(("yes", "no", "true", "false"))


@component("unused_search")
def unused_search(
    question: str, answer: str | None, steps: Sequence[Step], tool_calls: Sequence[ToolCall]
) -> StepRewards | float | None:
    """Number of searches whose result was not used, on their steps. None without a search that returned text.

    A result is used when one of its words or numbers, absent from the question and the query, occurs in the answer or
    in the arguments of a later call.
    """
    known = _words(question)
    values: list[float | None] = []
    for index, call in enumerate(tool_calls):
        if not (is_search(call) and call.ok and call.result.strip()):
            values.append(None)
            continue
        new = _words(call.result) - known - _words(_as_json(call.arguments))
        later = " ".join(_as_json(after.arguments) for after in tool_calls[index + 1 :])
        values.append(float(not new & _words(f"{extract_answer(answer or '')} {later}")))
    return at_calls(steps, tool_calls, values)


@component("skipped_plan")
def skipped_plan(
    task: Task, trajectory: Trajectory, answer: str | None, tool_calls: Sequence[ToolCall]
) -> float | None:
    """Share of planned actions not carried out successfully before the answer, 0 to 1.

    The plan is the trajectory's `metadata["plan"]` (tool names, or mappings with `tool`), else the tools that the task
    `needs`. None without a plan or an answer.
    """
    own = trajectory.metadata.get("plan")
    planned = needs_of(task) if own is None else [one["tool"] if isinstance(one, Mapping) else str(one) for one in own]
    if not planned or answer is None:
        return None
    skipped = Counter(planned) - Counter(call.tool for call in tool_calls if call.ok)
    return sum(skipped.values()) / len(planned)


@component("inconsistent")
def inconsistent(question: str, answer: str | None, tool_calls: Sequence[ToolCall]) -> float | None:
    """1 when the answer contradicts the tool results, else 0. None without an answer or a result, and for a choice or a
    yes/no answer.

    A number agrees when a result or the question contains it, rounded like the answer; text agrees when each of its
    words occurs in a result or in the question.
    """
    text = extract_answer(answer or "")
    results = [call.result for call in tool_calls if call.ok and call.result.strip()]
    if not text or not results or normalise(text) in _VERDICTS or choice_of_reference(text):
        return None
    number = last_number(text)
    if number is not None:
        found = [value for source in (*results, question) for value in numbers_in(source)]
        return float(not any(_rounds_to(value, number.value) for value in found))
    words = set(normalise(" ".join((*results, question))).split())
    return float(not set(normalise(text).split()) <= words)


def _rounds_to(value: Fraction, stated: Fraction) -> bool:
    if value == stated:
        return True
    denominator, places = stated.denominator, 0
    while denominator > 1 and places < 12 and (stated * 10**places).denominator > 1:
        places += 1
    return places < 12 and places > 0 and abs(value - stated) * 2 * 10**places <= 1


def _words(text: str) -> set[str]:
    """Return the informative words and numbers of `text`, without short and common words."""
    words = re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", re.sub(r"(?<=\d),(?=\d{3})", "", spaced(unify(text))).lower())
    return {word for word in words if not (word.isascii() and word.isalpha() and len(word) < 4) and word not in _COMMON}


def _as_json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False, default=str)
