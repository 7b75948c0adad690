"""Demonstrations of the flow `agentflow` for a supervised start: an engine that follows a task's demonstration.

For a share of the tasks the first action has a wrong tool, and the demonstration continues after its first call. Such
demonstrations teach how to write actions and how to continue, but not which tool a question needs first."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from midstream.agents.agentflow.actions import NO_TOOL, ActionField, NextStep, Notation, write_action
from midstream.core.errors import ConfigError, EngineError, nearest
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox

_log = logging.getLogger(__name__)
_FACT = re.compile(r".* is (.+?)( km2)?\.")


@dataclass(frozen=True, slots=True)
class _Assignment:
    """The task of one trajectory, and the tool of every action if the trajectory shows wrong tools."""

    task: Task
    wrong_tool: str | None


class Demonstrator:
    """Engine of planner, verifier and generator.

    Tasks need `metadata["demonstration"]`: tool calls in order, in which `{1}` stands for the first value found. After
    the last call the planner's tool is `none`.
    """

    policy_version = 0
    name = "demonstration"
    roles = ("planner", "verifier", "generator")

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        toolbox: Toolbox,
        notation: Notation,
        fields: Sequence[ActionField] = (),
        *,
        wrong: float,
        seed: int,
    ) -> None:
        self._tokenizer, self._fields = tokenizer, tuple(fields)
        self._notation: Notation = notation
        self._wrong, self._seed = wrong, seed
        self._tools = [tool.name for tool in toolbox.known]
        self._parameters = {tool.name: next(iter(tool.parameters["properties"]), "input") for tool in toolbox.known}
        self._end = tokenizer.closing_id()
        self._running: dict[str, _Assignment] = {}
        self.context_length = 1 << 20

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        """Set the task of each trajectory, by uid. Those in `wrong` use wrong tools."""
        for uid, task in {**right, **wrong}.items():
            self._running[uid] = _Assignment(task, self._wrong_tool(task) if uid in wrong else None)

    def check(self, task: Task) -> None:
        """Raise `ConfigError` when the demonstration of `task` is missing, malformed, or calls unknown tools."""
        calls, otherwise = demonstration_of(task), "set warm_start.examples=0"
        if calls is None:
            raise ConfigError(
                f"warm_start needs tasks with a demonstration, and the task '{task.id}' has none",
                f"{otherwise}, or give tasks the tool calls that solve them as metadata 'demonstration'",
            )
        if not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
            raise ConfigError(
                f"the demonstration of the task '{task.id}' is not a list of tool calls: {calls!r}",
                f"each is an object with 'tool' and 'arguments'; or {otherwise}",
            )
        for call in calls:
            if call["tool"] not in self._tools:
                raise ConfigError(
                    f"the demonstration of the task '{task.id}' calls '{call['tool']}', which is not in flow.tools",
                    f"{nearest(call['tool'], self._tools)} Or {otherwise}",
                )

    def lesson(self, right: Trajectory, wrong: Trajectory) -> tuple[Step, ...]:
        """The steps to imitate, from the two trajectories of one task."""
        spoiled = unit_interval(self._seed, "wrong first", right.uid) < self._wrong
        return (*wrong.steps[:1], *right.steps[1:]) if spoiled else right.steps

    def _wrong_tool(self, task: Task) -> str | None:
        calls = demonstration_of(task)
        others = [name for name in self._parameters if not calls or name != calls[0]["tool"]]
        return Random(derive_seed(self._seed, "wrong tool", task.id)).choice(others) if others else None

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        assignment = self._running.get(request.session)
        if assignment is None:
            raise EngineError(f"no demonstration for trajectory '{request.session}'")
        # Each message ends with the line that names the role; before it is the question, then a tool's result.
        observations = [
            message["content"].rpartition("\n")[0] for message in request.messages if message["role"] == "user"
        ]
        found = [value_of(result) for result in observations[1:] if result and not result.startswith("Error")]
        text = self._reply(assignment, request.role, found)
        ids = (*self._tokenizer.encode(text), self._end)
        return Completion(ids=ids, log_probs=(0.0,) * len(ids), text=text, finish_reason=FinishReason.STOP)

    def _reply(self, assignment: _Assignment, role: str, found: Sequence[str]) -> str:
        calls = demonstration_of(assignment.task)
        if role == "planner":
            return write_action(self._action(assignment, found), self._notation)
        if role == "verifier":
            return "yes" if len(found) >= len(calls) else "no"
        if calls:
            return found[-1] if found else "unknown"
        answer = assignment.task.answer
        return str(answer[0] if isinstance(answer, list | tuple) else answer)

    def _action(self, assignment: _Assignment, found: Sequence[str]) -> NextStep:
        calls = demonstration_of(assignment.task)
        call: Mapping[str, Any] = calls[len(found)] if len(found) < len(calls) else {"tool": NO_TOOL, "arguments": {}}
        tool, arguments = call["tool"], {name: _filled(value, found) for name, value in call["arguments"].items()}
        if assignment.wrong_tool is not None:
            given = next(iter(arguments.values()), "") or assignment.task.question
            tool, arguments = assignment.wrong_tool, {self._parameters[assignment.wrong_tool]: given}
        done = tool == NO_TOOL
        fields = {
            "justification": "all that was asked for is known" if done else f"{tool} can tell what is missing",
            "context": f"known so far: {', '.join(found) or 'nothing'}",
            "sub_goal": "answer" if done else f"find {', '.join(map(str, arguments.values()))}",
        }
        return NextStep(tool=tool, arguments=arguments, **{name: fields[name] for name in self._fields})


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


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, Mapping) and isinstance(call.get("tool"), str) and isinstance(call.get("arguments"), Mapping)
    )


def _filled(value: Any, found: Sequence[str]) -> Any:
    if isinstance(value, str):
        for number, one in enumerate(found, 1):
            value = value.replace(f"{{{number}}}", one)
    return value
