"""Demonstrations for a supervised start: an engine that follows the tool calls in a task's metadata.

For a share of the tasks the first action uses a wrong tool, and the demonstration continues after its first call. Such
demonstrations teach how to write actions and how to continue, but not which tool a question needs first."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

from midstream.core.errors import ConfigError, EngineError, nearest
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox

_log = logging.getLogger(__name__)
_FACT = re.compile(r".* is (.+?)( km2)?\.")
OTHERWISE = "set warm_start.examples=0"


@dataclass(slots=True)
class Assignment:
    """The task of one trajectory. `wrong_tool` is the tool of its first action if the trajectory shows a wrong one."""

    task: Task
    wrong_tool: str | None = None
    found: list[str] = field(default_factory=list)
    """Values of the results so far, for demonstrators that cannot read them from each request."""

    @property
    def calls(self) -> Sequence[Mapping[str, Any]]:
        """The tool calls that solve the task."""
        return demonstration_of(self.task)

    @property
    def answer(self) -> Any:
        """The task's answer, the first one if several are accepted."""
        answer = self.task.answer
        return answer[0] if isinstance(answer, list | tuple) and answer else answer


class Demonstrator(ABC):
    """Engine that speaks for the `roles` of a flow. Subclasses write the replies.

    Tasks need `metadata["demonstration"]`: tool calls in order, in which `{1}` stands for the first value found."""

    policy_version = 0
    name = "demonstration"
    roles: tuple[str, ...] = ("policy",)
    """Roles that can be demonstrated."""

    def __init__(self, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int) -> None:
        self._tokenizer, self._wrong, self._seed = tokenizer, wrong, seed
        self._parameters = {tool.name: next(iter(tool.parameters["properties"]), "input") for tool in toolbox.known}
        self._end = tokenizer.closing_id()
        self._running: dict[str, Assignment] = {}
        self.context_length = 1 << 20

    @abstractmethod
    def reply(self, assignment: Assignment, request: Request) -> str:
        """What the demonstrated policy writes."""

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        """Set the task of each trajectory, by uid. Those in `wrong` use wrong tools."""
        for uid, task in {**right, **wrong}.items():
            self._running[uid] = Assignment(task, self._wrong_tool(task) if uid in wrong else None)

    def check(self, task: Task) -> None:
        """Raise `ConfigError` when the demonstration of `task` is missing, malformed, or calls unknown tools."""
        calls = demonstration_of(task)
        if calls is None:
            raise ConfigError(
                f"warm_start needs tasks with a demonstration, and the task '{task.id}' has none",
                f"{OTHERWISE}, or give tasks the tool calls that solve them as metadata 'demonstration'",
            )
        if not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
            raise ConfigError(
                f"the demonstration of the task '{task.id}' is not a list of tool calls: {calls!r}",
                f"each is an object with 'tool' and 'arguments'; or {OTHERWISE}",
            )
        for call in calls:
            if call["tool"] not in self._parameters:
                raise ConfigError(
                    f"the demonstration of the task '{task.id}' calls '{call['tool']}', which is not in flow.tools",
                    f"{nearest(call['tool'], self._parameters)} Or {OTHERWISE}",
                )

    def lesson(self, right: Trajectory, wrong: Trajectory) -> tuple[Step, ...]:
        """The steps to imitate, from the two trajectories of one task."""
        spoiled = unit_interval(self._seed, "wrong first", right.uid) < self._wrong
        return (*wrong.steps[:1], *right.steps[1:]) if spoiled else right.steps

    def join(self, session: str) -> None:  # noqa: B027 - an engine has it, and nothing is to be done
        ...

    def leave(self, session: str) -> None:  # noqa: B027
        ...

    async def generate(self, request: Request) -> Completion:
        assignment = self._running.get(request.session)
        if assignment is None:
            raise EngineError(f"no demonstration for trajectory '{request.session}'")
        text = self.reply(assignment, request)
        ids = (*self._tokenizer.encode(text), self._end)
        return Completion(ids=ids, log_probs=(0.0,) * len(ids), text=text, finish_reason=FinishReason.STOP)

    def wrong_call(self, assignment: Assignment, right: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The wrong tool of `assignment` with the first of the `right` arguments, or with the question."""
        assert assignment.wrong_tool is not None
        given = next(iter(right.values()), "") or assignment.task.question
        return assignment.wrong_tool, {self._parameters[assignment.wrong_tool]: given}

    def _wrong_tool(self, task: Task) -> str | None:
        calls = demonstration_of(task)
        others = [name for name in self._parameters if not calls or name != calls[0]["tool"]]
        return Random(derive_seed(self._seed, "wrong tool", task.id)).choice(others) if others else None


def demonstration_of(task: Task) -> Any:
    """The tool calls that solve `task`, as its metadata has them; None without any."""
    if "demonstration" not in task.metadata and "plan" in task.metadata:
        _warn_of_old_key()
        return task.metadata["plan"]
    return task.metadata.get("demonstration")


@cache
def _warn_of_old_key() -> None:
    _log.warning("task metadata 'plan' is now called 'demonstration'; the old name still works")


def value_of(result: str) -> str:
    """The value in a tool's result: the part of a fact after `is`, or the whole result."""
    match = _FACT.fullmatch(result)
    return match.group(1) if match else result


def filled(arguments: Mapping[str, Any], found: Sequence[str]) -> dict[str, Any]:
    """`arguments` with `{1}`, `{2}`, ... in texts replaced by the values found."""
    return {name: _filled(value, found) for name, value in arguments.items()}


def _filled(value: Any, found: Sequence[str]) -> Any:
    if isinstance(value, str):
        for number, one in enumerate(found, 1):
            value = value.replace(f"{{{number}}}", one)
    return value


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, Mapping) and isinstance(call.get("tool"), str) and isinstance(call.get("arguments"), Mapping)
    )
