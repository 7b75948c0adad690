"""Demonstrations of the flow `agentflow`: an engine that answers as a plan says, for a supervised start.

For a share of the tasks the first action shown is one with a wrong tool, and what is shown of the right plan begins
after its first action: the demonstrations then teach how actions are written and how a plan goes on, and not which tool
a question needs first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from midstream.agents.agentflow.actions import NO_TOOL, NextStep, Notation, PlanField, write_action
from midstream.core.errors import ConfigError, EngineError, nearest
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox

_FACT = re.compile(r".* is (.+?)( km2)?\.")


@dataclass(frozen=True, slots=True)
class _Part:
    """What one trajectory is to show: its task, and the wrong tool of every action when it is the spoiled one."""

    task: Task
    wrong_tool: str | None


class Demonstrator:
    """Speaks for planner, verifier and generator of one flow at once.

    Tasks need `metadata["plan"]`: tool calls in order, `{1}` standing for a value found. A plan that is done goes on to
    `none`.
    """

    policy_version = 0
    name = "demonstration"
    roles = ("planner", "verifier", "generator")

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        toolbox: Toolbox,
        notation: Notation,
        fields: Sequence[PlanField] = (),
        *,
        wrong: float,
        seed: int,
    ) -> None:
        self._tokenizer, self._fields = tokenizer, tuple(fields)
        self._notation: Notation = notation
        self._wrong, self._seed = wrong, seed
        self._tools = [tool.name for tool in toolbox.tools]
        self._parameters = {tool.name: next(iter(tool.parameters["properties"]), "input") for tool in toolbox.tools}
        self._end = tokenizer.closing_id()
        self._running: dict[str, _Part] = {}
        self.context_length = 1 << 20

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        """Say which task each trajectory works on, and whether its tools are the wrong ones."""
        for uid, task in {**right, **wrong}.items():
            self._running[uid] = _Part(task, self._wrong_tool(task) if uid in wrong else None)

    def check(self, task: Task) -> None:
        """Raise `ConfigError` when the plan of `task` cannot be shown with the tools there are."""
        plan, otherwise = task.metadata.get("plan"), "set warm_start.examples=0"
        if plan is None:
            raise ConfigError(
                f"warm_start needs tasks that carry a plan, and the task '{task.id}' has none",
                f"{otherwise}, or give tasks the tool calls that solve them as metadata 'plan'",
            )
        if not (isinstance(plan, list) and all(_is_call(call) for call in plan)):
            raise ConfigError(
                f"the plan of the task '{task.id}' is not a list of tool calls: {plan!r}",
                f"each is an object with 'tool' and 'arguments'; or {otherwise}",
            )
        for call in plan:
            if call["tool"] not in self._tools:
                raise ConfigError(
                    f"the plan of the task '{task.id}' calls '{call['tool']}', which is not in flow.tools",
                    f"{nearest(call['tool'], self._tools)} Or {otherwise}",
                )

    def lesson(self, right: Trajectory, wrong: Trajectory) -> tuple[Step, ...]:
        """The steps to imitate of the two demonstrations of one task."""
        spoiled = unit_interval(self._seed, "wrong first", right.uid) < self._wrong
        return (*wrong.steps[:1], *right.steps[1:]) if spoiled else right.steps

    def _wrong_tool(self, task: Task) -> str | None:
        plan = task.metadata["plan"]
        others = [name for name, _ in self._parameters.items() if not plan or name != plan[0]["tool"]]
        return Random(derive_seed(self._seed, "wrong tool", task.id)).choice(others) if others else None

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        part = self._running.get(request.session)
        if part is None:
            raise EngineError(f"no demonstration for trajectory '{request.session}'")
        # Each message ends with the line that names who speaks; before it stands the question, then what tools gave.
        heard = [message["content"].rpartition("\n")[0] for message in request.messages if message["role"] == "user"]
        found = [value_of(news) for news in heard[1:] if news and not news.startswith("Error")]
        text = self._said(part, request.role, found)
        ids = (*self._tokenizer.encode(text), self._end)
        return Completion(ids=ids, log_probs=(0.0,) * len(ids), text=text, finish_reason=FinishReason.STOP)

    def _said(self, part: _Part, role: str, found: Sequence[str]) -> str:
        plan = part.task.metadata["plan"]
        if role == "planner":
            return write_action(self._action(part, found), self._notation)
        if role == "verifier":
            return "yes" if len(found) >= len(plan) else "no"
        if plan:
            return found[-1] if found else "unknown"
        answer = part.task.answer
        return str(answer[0] if isinstance(answer, list | tuple) else answer)

    def _action(self, part: _Part, found: Sequence[str]) -> NextStep:
        plan = part.task.metadata["plan"]
        call: Mapping[str, Any] = plan[len(found)] if len(found) < len(plan) else {"tool": NO_TOOL, "arguments": {}}
        tool, arguments = call["tool"], {name: _filled(value, found) for name, value in call["arguments"].items()}
        if part.wrong_tool is not None:
            given = next(iter(arguments.values()), "") or part.task.question
            tool, arguments = part.wrong_tool, {self._parameters[part.wrong_tool]: given}
        done = tool == NO_TOOL
        told = {
            "justification": "all that was asked for is known" if done else f"{tool} can tell what is missing",
            "context": f"known so far: {', '.join(found) or 'nothing'}",
            "sub_goal": "answer" if done else f"find {', '.join(map(str, arguments.values()))}",
        }
        return NextStep(tool=tool, arguments=arguments, **{name: told[name] for name in self._fields})


def value_of(result: str) -> str:
    """What a tool found: the part of a fact after `is`, or the whole result."""
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
