"""Demonstrations of the flow `agentflow`: an engine that answers as a plan says, for a supervised start.

For a share of the tasks the first action shown is one with a wrong tool, and what is shown of the right plan begins
after its first action: the demonstrations then teach how actions are written and how a plan goes on, and not which tool
a question needs first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from midstream.agents.agentflow.actions import NO_TOOL, NextStep, Notation, write_action
from midstream.core.errors import ConfigError, EngineError
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox

_FACT = re.compile(r".* is (.+?)( km2)?\.")


@dataclass(slots=True)
class _Progress:
    task: Task
    wrong_tool: str | None
    done: int = 0
    values: list[str] = field(default_factory=list)


class Demonstrator:
    """Speaks for every role of one flow at once.

    Tasks need `metadata["plan"]`: tool calls in order, `{1}` standing for a value found.
    """

    speaks_tokens = True
    policy_version = 0
    name = "demonstration"

    def __init__(
        self, tokenizer: ChatTokenizer, toolbox: Toolbox, notation: Notation, *, wrong: float, seed: int
    ) -> None:
        self._tokenizer = tokenizer
        self._notation: Notation = notation
        self._wrong, self._seed = wrong, seed
        self._tools = [tool.name for tool in toolbox.tools]
        self._parameters = {tool.name: next(iter(tool.parameters["properties"]), "input") for tool in toolbox.tools}
        self._end = min(tokenizer.end_ids)
        self._running: dict[str, _Progress] = {}
        self.context_length = 1 << 20

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        """Say which task each trajectory works on, and whether its first tool is the wrong one."""
        for uid, task in {**right, **wrong}.items():
            if "plan" not in task.metadata:
                raise ConfigError(
                    f"task '{task.id}' has no plan to demonstrate",
                    "set warm_start.examples=0, or give tasks metadata['plan']",
                )
            self._running[uid] = _Progress(task, self._wrong_tool(task) if uid in wrong else None)

    def lesson(self, right: Trajectory, wrong: Trajectory) -> tuple[Step, ...]:
        """The steps to imitate of the two demonstrations of one task."""
        spoiled = unit_interval(self._seed, "wrong first", right.uid) < self._wrong
        return (*wrong.steps[:1], *right.steps[1:]) if spoiled else right.steps

    def _wrong_tool(self, task: Task) -> str | None:
        plan = task.metadata["plan"]
        others = [name for name in self._tools if not plan or name != plan[0]["tool"]]
        return Random(derive_seed(self._seed, "wrong tool", task.id)).choice(others) if others else None

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        progress = self._running.get(request.session)
        if progress is None:
            raise EngineError(f"no demonstration for trajectory '{request.session}'")
        heard = [message["content"].rpartition("\n")[0] for message in request.messages if message["role"] == "user"]
        text = (
            self._planner(progress, heard) if request.role == "planner" else self._other(progress, request.role, heard)
        )
        ids = (*self._tokenizer.encode(text), self._end)
        return Completion(ids=ids, log_probs=(0.0,) * len(ids), text=text, finish_reason=FinishReason.STOP)

    def _planner(self, progress: _Progress, heard: Sequence[str]) -> str:
        plan = progress.task.metadata["plan"]
        if len(heard) > 1 and not heard[-1].startswith("Error") and progress.done < len(plan):
            progress.values.append(value_of(heard[-1]))
            progress.done += 1
        place = min(progress.done, len(plan) - 1)
        if not plan:
            tool, given = NO_TOOL, ""
        else:
            tool = plan[place]["tool"]
            given = _filled(str(next(iter(plan[place]["arguments"].values()), "")), progress.values)
        if progress.wrong_tool is not None:
            tool, given = progress.wrong_tool, given or progress.task.question
        arguments = {} if tool == NO_TOOL else {self._parameters[tool]: given}
        return write_action(NextStep(tool=tool, arguments=arguments), self._notation)

    def _other(self, progress: _Progress, role: str, heard: Sequence[str]) -> str:
        if role == "verifier":
            return "yes" if progress.done >= len(progress.task.metadata["plan"]) - 1 else "no"
        news = heard[-1] if heard else ""
        if len(heard) < 2 or not news:
            answer = progress.task.answer
            return str(answer[0] if isinstance(answer, list | tuple) else answer)
        return "unknown" if news.startswith("Error") else value_of(news)


def value_of(result: str) -> str:
    """What a tool found: the part of a fact after `is`, or the whole result."""
    match = _FACT.fullmatch(result)
    return match.group(1) if match else result


def _filled(text: str, values: Sequence[str]) -> str:
    for number, value in enumerate(values, 1):
        text = text.replace(f"{{{number}}}", value)
    return text
