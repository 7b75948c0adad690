"""What the nodes of a plan call: a tool, the executor's model, the undoing of a tool, and the planner for a new plan.

Calls of models and tools are named by the node, so an attempt that is resumed finds each of them again in any order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from midstream.agents.plan_and_execute.steps import PlannedStep, filled
from midstream.core.errors import MidstreamError
from midstream.plans import Context, Fatal, Handler, Permanent
from midstream.plans.errors import HandlerError
from midstream.plans.handlers import make_handler
from midstream.tools.errors import OVER_BUDGET
from midstream.tools.marking import RULE, marked_text

if TYPE_CHECKING:
    from midstream.agents.plan_and_execute.flow import PlanAndExecuteFlow

T = TypeVar("T")
STEP_TIMEOUT_S = 3600.0
"""Limit of one step; tools and `rollout.timeout_s` have their own."""
_EXECUTOR = f"""You carry out one step of a larger plan. Write only its result.
{RULE}"""


class PlanHandlers:
    """The handlers of one attempt. `raised` is an error that ends the whole attempt, not only a step."""

    def __init__(self, flow: PlanAndExecuteFlow) -> None:
        self._flow = flow
        self.raised: MidstreamError | None = None

    @property
    def all(self) -> list[Handler]:
        """`tool`, `task`, `undo` and `replan`. Calls of tools and models are recorded under the node's key, so each may
        be started again."""

        async def tool(ctx: Context, step: dict[str, Any], given: dict[str, Any]) -> str:
            return await self._unless_fatal(self._call_tool(ctx, PlannedStep.model_validate(step), given))

        async def task(ctx: Context, step: dict[str, Any], given: dict[str, Any]) -> str:
            return await self._unless_fatal(self._ask_executor(ctx, PlannedStep.model_validate(step), given))

        async def undo(ctx: Context, args: dict[str, Any], output: Any = None) -> None:
            await self._unless_fatal(self._undo(ctx, PlannedStep.model_validate(args["step"]), args["given"], output))

        async def replan(
            ctx: Context, plan: dict[str, Any], failed: str, error: str, states: dict[str, str]
        ) -> dict[str, Any]:
            return await self._unless_fatal(self._flow.replan(ctx, plan, failed, error, states))

        functions = (tool, task, undo, replan)
        return [make_handler(one, one.__name__, effects="idempotent", timeout_s=STEP_TIMEOUT_S) for one in functions]

    async def _unless_fatal(self, work: Awaitable[T]) -> T:
        """Let an error that is not the step's own, such as an engine that does not answer, end the plan."""
        try:
            return await work
        except HandlerError:
            raise
        except MidstreamError as error:
            self.raised = self.raised or error
            raise Fatal(str(error)) from error

    async def _call_tool(self, ctx: Context, step: PlannedStep, given: Mapping[str, Any]) -> str:
        self._check_budget()
        tool = self._flow.session.tools.get(step.tool)
        arguments = filled(step, given, tool).args
        call = await self._flow.call_tool(
            step.tool, arguments, step_index=self._flow.planned_by, key=self._flow.key(ctx)
        )
        if call.ok:
            return call.result
        if call.error_kind == OVER_BUDGET:
            self._flow.stopped = "tool_calls"
            raise Fatal(call.result)
        raise Permanent(call.result)

    async def _ask_executor(self, ctx: Context, step: PlannedStep, given: Mapping[str, Any]) -> str:
        self._check_budget()
        results = [marked_text(str(value), name) for name, value in given.items()]
        # Results stay marked as data; the task itself names them.
        task = step.task.replace("{", "").replace("}", "")
        shown = "\n".join([*results, f"Question: {self._flow.task.question}", f"Step: {task}"])
        messages = [{"role": "system", "content": _EXECUTOR}, {"role": "user", "content": shown}]
        reply = await self._flow.chat(messages, role="executor", key=self._flow.key(ctx))
        text = reply.content.strip()
        if not text:
            raise Permanent("the executor wrote nothing")
        return text

    async def _undo(self, ctx: Context, step: PlannedStep, given: Mapping[str, Any], output: Any) -> None:
        name = self._flow.chosen.undo[step.tool]
        tool = self._flow.session.tools.get(name)
        known = {**filled(step, given).args, "output": output}
        wanted = {} if tool is None else tool.parameters.get("properties", {})
        arguments = {key: value for key, value in known.items() if key in wanted}
        call = await self._flow.call_tool(
            name, arguments, step_index=self._flow.planned_by, key=self._flow.key(ctx, "undo")
        )
        if not call.ok:
            raise Permanent(call.result)

    def _check_budget(self) -> None:
        if limit := self._flow.spending.exhausted:
            self._flow.stopped = limit
            raise Fatal(f"the attempt's budget of {limit} is used up")
