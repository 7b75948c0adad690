"""Which step of a `graph` plan starts next: the role `scheduler` chooses among those that are ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from midstream.agents.plan_and_execute.steps import PlannedStep
from midstream.agents.scheduling.policy import RolePolicy
from midstream.core.types import Message
from midstream.plans import Choice, ReadyNode, SchedulerState
from midstream.plans.instances import PLANNER

if TYPE_CHECKING:
    from midstream.agents.plan_and_execute.flow import PlanAndExecuteFlow


class StepPolicy:
    """Asks the role `scheduler` (`RolePolicy`) while more steps are ready than may start at the same time.

    Nothing is asked for the planner, which starts at once, nor when the attempt's budget is used up. Calls of the role
    have a key, so that an attempt that is resumed asks only for choices that were not made yet."""

    def __init__(self, flow: PlanAndExecuteFlow, key: Callable[[SchedulerState, Sequence[ReadyNode]], str]) -> None:
        self._flow = flow
        self._role = RolePolicy(flow.chat, self._messages, key=key)
        self.name = self._role.name

    async def choose(self, state: SchedulerState) -> Choice:
        feasible = [at for at, can_start in enumerate(state.feasible) if can_start]
        planners = [at for at in feasible if state.ready[at].path.startswith(PLANNER)]
        free = self._flow.chosen.concurrency - len(state.running)
        if planners or len(state.ready) <= free or self._flow.spending.exhausted:
            return Choice((planners or feasible)[0], 0.0)
        # In the order of the plan, which a restart does not change.
        place = {step.id: at for at, step in enumerate(self._flow.planned)}
        order = sorted(range(len(state.ready)), key=lambda at: place[state.ready[at].path])
        ready, can_start = [state.ready[at] for at in order], [state.feasible[at] for at in order]
        choice = await self._role.choose(replace(state, ready=ready, feasible=can_start))
        return replace(choice, index=order[choice.index])

    def _messages(self, state: SchedulerState, feasible: Sequence[ReadyNode]) -> list[Message]:
        steps = {step.id: step for step in self._flow.planned}
        lines = [f"Question: {self._flow.task.question}", "Which step starts next?"]
        lines += [f"{_described(steps[node.path])}; {node.dependents} wait for it" for node in feasible]
        return [{"role": "user", "content": "\n".join(lines)}]


def _described(step: PlannedStep) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in step.args.items())
    return f"{step.id}: {step.task or f'{step.tool}({arguments})'}"
