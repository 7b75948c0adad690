"""The tools `plan_*`: status, open questions, answers and resumption of plans, for agents and MCP clients.

midstream mcp plans --set plans.store=plans.sqlite --set 'plans.handlers=[desk.py]'
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.config import Config
from midstream.core.errors import UserError, nearest
from midstream.core.toolsets import ToolPolicy, ToolResult, ToolSpec
from midstream.plans import views
from midstream.plans.executor import AgentExecutor
from midstream.plans.load import load_handlers, open_plans
from midstream.plans.states import RunStatus
from midstream.plans.views import OpenQuestion, RunResult, RunView
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind

RESUME_TIMEOUT_S = 600.0
MOST_RUNS = 50


class PlanToolSettings(Config):
    """`flow.tool_settings.plans`."""

    store: str = "plans.sqlite"
    """Database with the journal of the plans: a path, or a postgresql:// URL."""
    handlers: tuple[str, ...] = ()
    """Modules or Python files with the handlers that `plan_resume` needs."""
    answer: bool = True
    """Offer `plan_answer`."""
    resume: bool = True
    """Offer `plan_resume`."""


def _spec(name: str, description: str, *, timeout_s: float = 30.0, **parameters: Any) -> ToolSpec:
    optional = {key for key, schema in parameters.items() if schema.pop("optional", False)}
    schema = {
        "type": "object",
        "properties": parameters,
        "required": [key for key in parameters if key not in optional],
        "additionalProperties": False,
    }
    policy = ToolPolicy(idempotent=name != "plan_answer")
    return ToolSpec(name=name, description=description, parameters=schema, timeout_s=timeout_s, policy=policy)


def _run() -> dict[str, Any]:
    return {"type": "string", "description": "uid of the run"}


def _specs() -> list[ToolSpec]:
    status = {"enum": [str(status) for status in RunStatus], "optional": True}
    question = {"type": "string", "description": "id of the question"}
    answer = {"description": "what fits the question's schema"}
    return [
        _spec("plan_runs", "List the newest runs of plans, or those with a status.", status=status),
        _spec("plan_status", "The state of every node of a run, its error and its output.", run=_run()),
        _spec("plan_questions", "Questions that wait for an answer.", run={**_run(), "optional": True}),
        _spec("plan_answer", "Answer a question of a run.", run=_run(), question=question, answer=answer),
        _spec("plan_resume", "Go on with a run until it ends or waits.", timeout_s=RESUME_TIMEOUT_S, run=_run()),
    ]


class PlanToolset:
    """The tools of one journal."""

    def __init__(self, settings: PlanToolSettings) -> None:
        left_out = {name for name in ("answer", "resume") if not getattr(settings, name)}
        self._settings = settings
        self.specs: Sequence[ToolSpec] = [spec for spec in _specs() if spec.name.removeprefix("plan_") not in left_out]
        self._executor: AgentExecutor | None = None

    async def open(self) -> None:
        """Raises `RunError` when there is no journal at the store's path."""
        handlers = load_handlers(self._settings.handlers)
        self._executor = await asyncio.to_thread(open_plans, self._settings.store, handlers)

    async def list(self) -> Sequence[ToolSpec]:
        return self.specs

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        assert self._executor is not None, "the toolset is not open"
        if name not in {spec.name for spec in self.specs}:
            raise ToolError(f"unknown tool '{name}'; {nearest(name, (spec.name for spec in self.specs))}")
        try:
            return ToolResult.of(await self._called(self._executor, name, arguments))
        except UserError as error:
            raise ToolError(str(error)) from None

    async def close(self) -> None:
        if self._executor is not None:
            await self._executor.close()

    async def _called(self, executor: AgentExecutor, name: str, arguments: Mapping[str, Any]) -> Any:
        run = str(arguments.get("run", ""))
        match name:
            case "plan_runs":
                status = arguments.get("status")
                read = executor.database.read
                rows = await asyncio.to_thread(
                    read, lambda connection: views.runs(connection, status=status, limit=MOST_RUNS)
                )
                return {"runs": [{"run": row.uid, "plan": row.name, "status": str(row.status)} for row in rows]}
            case "plan_status":
                return _status(await executor.status(run), await executor.result(run))
            case "plan_questions":
                return {"questions": [_question(one) for one in await executor.questions(run or None)]}
            case "plan_answer":
                await executor.answer(run, str(arguments["question"]), arguments["answer"])
                return {"answered": arguments["question"]}
            case _:
                return _result(await executor.resume(run))


def _status(view: RunView, result: RunResult) -> dict[str, Any]:
    nodes = {
        node.id: {"state": str(view.nodes[node.id].state), "why": view.nodes[node.id].reason}
        for node in view.plan.nodes
        if node.id in view.nodes
    }
    waiting = {node.id: {"state": "pending", "why": ""} for node in view.plan.nodes if node.id not in view.nodes}
    return {**_result(result), "interrupted": view.interrupted, "nodes": {**nodes, **waiting}}


def _result(result: RunResult) -> dict[str, Any]:
    return {
        "run": result.uid,
        "status": str(result.status),
        "output": result.output,
        "error": result.error,
        "questions": [_question(one) for one in result.questions],
        "remains": list(result.remains),
    }


def _question(one: OpenQuestion) -> dict[str, Any]:
    return {"run": one.run, "question": one.id, "node": one.path, "prompt": one.prompt, "schema": one.schema}


plans = ToolKind(PlanToolSettings, PlanToolset)
"""The toolset for `flow.tools` and `midstream mcp`."""
