"""Runs workflows on the plan executor, so that a long one survives `kill -9`.

A run is a plan with one node, and each node of the workflow is a durable step of it. A process that goes on with the
run asks no model again for what is done, and draws the seeds and keeps the budgets of a run that was not interrupted.
`midstream plan status` lists such runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from midstream.core.errors import RunError
from midstream.plans import AgentExecutor, Context, Handler, RunStatus, Transient, handler
from midstream.workflows import ir
from midstream.workflows.hybrid import read_workflow, write_hybrid
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.trace import NodeRun, WorkflowRun, node_from_json, run_from_json
from midstream.workflows.run.trace import RunStatus as Ended

HANDLER = "run_workflow"
_MARGIN_S = 60.0
"""How much longer than a workflow's own time limit its plan node may take."""


class StepJournal:
    """The journal of a node of a plan: each node of the workflow is a durable step."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def once(self, key: str, execute: Callable[[], Awaitable[NodeRun]]) -> NodeRun:
        async def data() -> dict[str, Any]:
            return asdict(await execute())

        # A model call may be repeated: it has no effect outside.
        return node_from_json(await self._context.step(key, data, effects="none"))


class DurableRuns:
    """Durable runs of workflows with `runner`, in the store at `path` (a SQLite file). Use as an async context
    manager."""

    def __init__(self, runner: WorkflowRunner, path: str | Path) -> None:
        self._runner = runner
        self._executed: set[str] = set()
        self._executor = AgentExecutor(path, [self._handler()])

    async def __aenter__(self) -> Self:
        await self._executor.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._executor.__aexit__(kind, error, trace)

    async def run(self, workflow: ir.Workflow, problem: WorkflowInput | str, *, uid: str, seed: int = 0) -> WorkflowRun:
        """Run a workflow under the name `uid`, or go on with that run. One that ended returns its result, unless it
        ended because a service did not answer: that one goes on.

        Raises `RunError` when `uid` is a run of another workflow or problem, or is held by another process."""
        given = WorkflowInput(problem=problem) if isinstance(problem, str) else problem
        asked = {"workflow": write_hybrid(workflow), "problem": asdict(given), "seed": seed}
        self._executed.discard(uid)
        result = await self._executor.run(self._plan(), asked, uid=uid)
        if result.status is RunStatus.FAILED and uid not in self._executed:
            result = await self._executor.retry(uid)
        if result.status is RunStatus.FAILED:
            return WorkflowRun(answer=None, status=Ended.FAILED, error=result.error, cause="infrastructure")
        if result.status is not RunStatus.SUCCEEDED:
            raise RunError(f"the run '{uid}' is {result.status}", "see midstream plan status")
        return run_from_json(result.output)

    def _plan(self) -> dict[str, Any]:
        node = {
            "id": "workflow",
            "handler": HANDLER,
            "args": {"given": {"$ref": "input"}},
            "timeout_s": self._runner.settings.timeout_s + _MARGIN_S,
            "retry": {"attempts": 1},  # the runner retries model calls itself
        }
        return {"name": "workflow", "nodes": [node], "output": {"$ref": "workflow"}, "on_failure": "stop"}

    def _handler(self) -> Handler:
        @handler(HANDLER, effects="steps")
        async def run_workflow(ctx: Context, given: dict[str, Any]) -> dict[str, Any]:
            self._executed.add(ctx.run)
            workflow = read_workflow(given["workflow"], self._runner.operators, self._runner.limits)
            problem = WorkflowInput(**{**given["problem"], "public_tests": tuple(given["problem"]["public_tests"])})
            journal = StepJournal(ctx)
            run = await self._runner.run(workflow, problem, seed=given["seed"], journal=journal)
            if run.cause == "infrastructure":
                raise Transient(run.error)
            return asdict(run)

        return run_workflow
