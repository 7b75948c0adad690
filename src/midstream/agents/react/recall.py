"""What `react` recalls of its actions when the conversation is too long to be shown: records instead of messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from midstream.agents.react.actions import Answer, AnyAction, Plan, Reasoning
from midstream.core.types import Message, ToolCall
from midstream.memory.records import WorkingRecord, WorkingRecords
from midstream.tools.marking import marked_text

RECALLED = "Your earlier actions; those left out were older or less relevant:"


class Recall:
    """Records of all actions but the latest, which is shown as it was. `budget` limits the tokens of a prompt; without
    one the whole conversation is shown."""

    def __init__(self, count_tokens: Callable[[str], int], budget: int | None) -> None:
        self._count, self._budget = count_tokens, budget
        self._earlier = WorkingRecords(count_tokens)
        self._latest: WorkingRecord | None = None
        self.shortened = 0
        """Number of prompts that showed records instead of messages."""

    def add(self, record: WorkingRecord) -> None:
        """Add the record of the latest action."""
        if self._latest is not None:
            self._earlier.add(self._latest)
        self._latest = record

    def shown(self, conversation: Sequence[Message], start: str, query: str) -> list[Message]:
        """Return `conversation` if it is within the budget. Otherwise: its system message; `start` with the records of
        earlier actions that are most recent and relevant to `query`; and the latest action with what came of it. The
        latest of the earlier records is always shown."""
        if self._budget is None or not self._earlier.records:
            return list(conversation)
        if sum(map(self._tokens, conversation)) <= self._budget:
            return list(conversation)
        system, *_, action, observation = conversation
        fixed = "\n".join([start, RECALLED, marked_text("", "memory")])
        self._earlier.budget = self._budget - self._count(fixed) - sum(map(self._tokens, (system, action, observation)))
        self.shortened += 1
        records = marked_text(self._earlier.text(query), "memory")
        return [system, {"role": "user", "content": f"{start}\n{RECALLED}\n{records}"}, action, observation]

    def _tokens(self, message: Message) -> int:
        return self._count(str(message["content"]))


def record_of(action: AnyAction, observation: str, calls: Sequence[ToolCall]) -> WorkingRecord:
    """Return the record of an action after which `observation` was shown. Its tool call, if it made one, is the last of
    `calls`."""
    match action:
        case Reasoning():
            return WorkingRecord(sub_goal=action.thought)
        case Plan():
            return WorkingRecord(sub_goal=f"plan: {'; '.join(action.steps)}")
        case Answer():
            return WorkingRecord(sub_goal=f"answer: {action.answer}", verdict=observation)
        case _:
            call = calls[-1]
            outcome = {"result": call.result} if call.ok else {"error": call.result.removeprefix("Error: ")}
            return WorkingRecord(tool=call.tool, arguments=call.arguments, **outcome)
