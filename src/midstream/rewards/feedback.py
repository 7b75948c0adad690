"""Reward components from user feedback and from the further course of a conversation.

They read the list `metadata["feedback"]` of a trajectory, whose items have `kind`, `value`, `text` and `step_index`
(None for the whole trajectory), and return None when it has no matching item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midstream.core.types import Message, Step, Trajectory
from midstream.rewards import graders
from midstream.rewards.components import StepRewards, component

FeedbackItem = Mapping[str, Any]

REPEATED_F1 = 0.8
"""Token F1 above which a user message counts as a repetition of the previous one."""


@component("thumbs")
def thumbs(trajectory: Trajectory) -> float | None:
    """Mean of the thumbs, 1 for up and -1 for down. None without any."""
    return _mean(trajectory, "thumbs", lambda item: float(item["value"]))


@component("rating")
def rating(trajectory: Trajectory) -> float | None:
    """Mean of the ratings, 0 to 1. None without any."""
    return _mean(trajectory, "rating", lambda item: float(item["value"]))


@component("correction")
def correction(trajectory: Trajectory) -> float | None:
    """Mean token F1 (`graders.f1`) between the original text and its correction, 0 to 1. None without corrections.

    The original text is that of the corrected step, or the answer, or the text of the last step.
    """
    texts = {step.step_index: step.text for step in trajectory.steps}
    last = trajectory.steps[-1].text if trajectory.steps else ""
    whole = trajectory.answer or last
    return _mean(trajectory, "correction", lambda item: graders.f1(texts.get(item["step_index"], whole), item["text"]))


@component("next_user_turn")
def next_user_turn(steps: Sequence[Step]) -> StepRewards | None:
    """Rates each reply by the user's next message: 1 for thanks or praise, -1 for a complaint, a correction or a
    repeated question, 0 otherwise. None for a step without a following user message, and when there is none at all.

    The rule (`verdict`) knows a few English phrases and does not detect irony.
    """
    values = [_follow_up(step, steps[index + 1 :]) for index, step in enumerate(steps)]
    return StepRewards(values) if any(value is not None for value in values) else None


COMPLAINTS = (
    "(that|this|it|you)('s|'re| is| are| was) (wrong|incorrect|not right|not correct|not true|not it)",
    "(is|was|does|did|do|are)(n't| not) (right|correct|true|work|working|help|answer|what i)",
    "still (not|wrong|fails|broken)|not what i",
    "you (forgot|missed|misunderstood|ignored)|i (meant|asked for)|try again|useless",
)
"""Regular expressions in lower case, matched between word boundaries."""
COMPLAINTS_FIRST = ("no[,.!;:]", "no that", "nope", "wrong", "incorrect", "not quite", "actually")
"""Matched only at the start of a message."""
PRAISE = (
    "thanks|thank you|thx|well done|good job|nice work|very helpful",
    "(that|this|it)('s| is| was) (right|correct|perfect|great|exactly)|(that|it) (works|worked|helps|helped)",
)
PRAISE_FIRST = ("great", "perfect", "excellent", "awesome", "correct", "exactly")


def verdict(message: str, before: str) -> int:
    """Rate the reply to the user's message `before` by the user's next `message`: -1, 0 or 1.

    -1 when it contains one of `COMPLAINTS`, even beside thanks; else 1 when it contains one of `PRAISE`; else -1 when
    it repeats `before` (token F1 of at least 0.8); else 0.
    """
    text = message.lower().replace("’", "'")
    if _complaint.search(text):
        return -1
    if _praise.search(text):
        return 1
    return -1 if before.strip() and graders.f1(message, before) >= REPEATED_F1 else 0


def _phrases(first: Sequence[str], anywhere: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"^\W*(?:{'|'.join(first)})(?!\w)|(?<!\w)(?:{'|'.join(anywhere)})(?!\w)")


_complaint, _praise = _phrases(COMPLAINTS_FIRST, COMPLAINTS), _phrases(PRAISE_FIRST, PRAISE)


def _mean(trajectory: Trajectory, kind: str, value: Callable[[FeedbackItem], float]) -> float | None:
    values = [value(item) for item in trajectory.metadata.get("feedback", ()) if item["kind"] == kind]
    return sum(values) / len(values) if values else None


def _follow_up(step: Step, later: Sequence[Step]) -> float | None:
    """Rate the user's next message; None when the conversation did not continue from this reply."""
    count = len(step.messages)
    for next_step in later:
        if len(next_step.messages) < count + 2 or next_step.messages[:count] != step.messages:
            continue
        reply, following = next_step.messages[count], next_step.messages[count + 1]
        replied = _text(reply).strip()
        # An agent may send back only a part of the sampled reply, for example without the thinking.
        if reply["role"] == "assistant" and following["role"] == "user" and replied and replied in step.text:
            questions = [_text(message) for message in step.messages if message["role"] == "user"]
            return float(verdict(_text(following), questions[-1] if questions else ""))
    return None


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or () if part.get("type") == "text")
