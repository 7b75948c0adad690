"""Reward components made of what people said of a trajectory, and of how a conversation went on.

They read the list `metadata["feedback"]` of a trajectory, whose items have `kind`, `value`, `text` and `step_index`
(None for the whole), and are None where it has nothing of theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from midstream.core.types import Message, Step, Trajectory
from midstream.rewards import graders
from midstream.rewards.components import StepRewards, component

Said = Mapping[str, Any]

REPEATED_F1 = 0.8
"""Token F1 from which on a user's message counts as the one before it, asked again."""


@component("thumbs")
def thumbs(trajectory: Trajectory) -> float | None:
    """Mean of the thumbs, 1 for up and -1 for down. None without any."""
    return _mean(trajectory, "thumbs", lambda said: float(said["value"]))


@component("rating")
def rating(trajectory: Trajectory) -> float | None:
    """Mean of the ratings, 0 to 1. None without any."""
    return _mean(trajectory, "rating", lambda said: float(said["value"]))


@component("correction")
def correction(trajectory: Trajectory) -> float | None:
    """How little had to be corrected, 0 to 1: token F1 (`graders.f1`) of what was said and what should have been, the
    mean over corrections. None without any.

    What was said is the text of the step that was corrected, or the answer, or else the text of the last step.
    """
    texts = {step.step_index: step.text for step in trajectory.steps}
    last = trajectory.steps[-1].text if trajectory.steps else ""
    whole = trajectory.answer or last
    return _mean(trajectory, "correction", lambda said: graders.f1(texts.get(said["step_index"], whole), said["text"]))


@component("next_user_turn")
def next_user_turn(steps: Sequence[Step]) -> StepRewards | None:
    """What the user's next message says of a reply: 1 for thanks or praise, -1 for a complaint, a correction or the
    same question again, 0 for anything else. None for a step that no user message follows, and when none does.

    The rule (`verdict`) knows a few English phrases, and no irony.
    """
    values = [_follow_up(step, steps[place + 1 :]) for place, step in enumerate(steps)]
    return StepRewards(values) if any(value is not None for value in values) else None


COMPLAINTS = (
    "(that|this|it|you)('s|'re| is| are| was) (wrong|incorrect|not right|not correct|not true|not it)",
    "(is|was|does|did|do|are)(n't| not) (right|correct|true|work|working|help|answer|what i)",
    "still (not|wrong|fails|broken)|not what i",
    "you (forgot|missed|misunderstood|ignored)|i (meant|asked for)|try again|useless",
)
"""Regular expressions, in lower case, between word boundaries."""
COMPLAINTS_FIRST = ("no[,.!;:]", "no that", "nope", "wrong", "incorrect", "not quite", "actually")
"""At the start of a message only."""
PRAISE = (
    "thanks|thank you|thx|well done|good job|nice work|very helpful",
    "(that|this|it)('s| is| was) (right|correct|perfect|great|exactly)|(that|it) (works|worked|helps|helped)",
)
PRAISE_FIRST = ("great", "perfect", "excellent", "awesome", "correct", "exactly")


def verdict(message: str, before: str) -> int:
    """What a user's `message` says of the reply to their message `before`: -1, 0 or 1.

    -1 when it holds one of `COMPLAINTS`, whatever thanks stand beside it; else 1 when it holds one of `PRAISE`; else -1
    when it is `before` again (token F1 of at least 0.8); else 0.
    """
    said = message.lower().replace("’", "'")
    if _complaint.search(said):
        return -1
    if _praise.search(said):
        return 1
    return -1 if before.strip() and graders.f1(message, before) >= REPEATED_F1 else 0


def _phrases(first: Sequence[str], anywhere: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"^\W*(?:{'|'.join(first)})(?!\w)|(?<!\w)(?:{'|'.join(anywhere)})(?!\w)")


_complaint, _praise = _phrases(COMPLAINTS_FIRST, COMPLAINTS), _phrases(PRAISE_FIRST, PRAISE)


def _mean(trajectory: Trajectory, kind: str, value: Callable[[Said], float]) -> float | None:
    values = [value(said) for said in trajectory.metadata.get("feedback", ()) if said["kind"] == kind]
    return sum(values) / len(values) if values else None


def _follow_up(step: Step, later: Sequence[Step]) -> float | None:
    """What the user said next, judged; None when the conversation did not go on, or not from this reply."""
    count = len(step.messages)
    for one in later:
        if len(one.messages) < count + 2 or one.messages[:count] != step.messages:
            continue
        reply, following = one.messages[count], one.messages[count + 1]
        replied = _text(reply).strip()
        # The reply an agent hands back may be a part of what was sampled: without the thoughts, say.
        if reply["role"] == "assistant" and following["role"] == "user" and replied and replied in step.text:
            asked = [_text(message) for message in step.messages if message["role"] == "user"]
            return float(verdict(_text(following), asked[-1] if asked else ""))
    return None


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or () if part.get("type") == "text")
