"""Answers for users, also when a workflow is broken: three layers of fallback, each flagged in the trace.

1. `instantiate`: the workflow cannot be read or is refused by the checker; the default workflow answers.
2. `execute`: the workflow failed or timed out; the default workflow answers.
3. `direct`: the default workflow failed, too; the model is asked without any workflow.

Training and evaluation use `WorkflowRunner.run`, which has none of them: what a fallback answers says nothing about the
workflow, so it never earns a reward.
"""

from __future__ import annotations

from dataclasses import replace

from midstream.core.errors import EngineError, MidstreamError
from midstream.core.sampling import SamplingParams
from midstream.workflows import ir
from midstream.workflows.problems import WorkflowError, errors
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.trace import FallbackLayer, RunStatus, WorkflowRun

DEFAULT_WORKFLOW = ir.Workflow(
    instances=(ir.Instance("custom", "Custom"),),
    body=(
        ir.Invoke("solution", "custom", (("input", ir.Input("problem")),)),
        ir.Return(ir.Field(ir.Variable("solution"), "response")),
    ),
)
"""One call of the model with the problem alone: AFlow's first round."""


async def serve(
    workflow: ir.Workflow | str, problem: WorkflowInput | str, runner: WorkflowRunner, *, seed: int = 0
) -> WorkflowRun:
    """Answer a problem. `workflow` may be a text in either form. `fallback` of the run names the layer that answered,
    and `fallback_reason` why."""
    given = WorkflowInput(problem=problem) if isinstance(problem, str) else problem
    reason, layer = _refusal(workflow, runner), "instantiate"
    if isinstance(workflow, str):
        checked = runner.check(workflow)
        workflow = checked.workflow if checked.workflow is not None else DEFAULT_WORKFLOW
    if not reason:
        run = await runner.run(workflow, given, seed=seed)
        if run.status is RunStatus.COMPLETED:
            return run
        reason, layer = run.error, "execute"
    if "Custom" in runner.operators:
        run = await runner.run(DEFAULT_WORKFLOW, given, seed=seed)
        if run.status is RunStatus.COMPLETED:
            return _flagged(run, layer, reason)
        reason = f"{reason}; the default workflow: {run.error}"
    return await _direct(given, runner, reason)


def _refusal(workflow: ir.Workflow | str, runner: WorkflowRunner) -> str:
    """Why the workflow must not run, or ""."""
    problems = runner.check(workflow).problems if isinstance(workflow, str) else runner.problems(workflow)
    found = errors(problems)
    return WorkflowError(found).message if found else ""


async def _direct(given: WorkflowInput, runner: WorkflowRunner, reason: str) -> WorkflowRun:
    settings = runner.settings
    sampling = SamplingParams(max_tokens=settings.max_tokens, temperature=settings.temperature)
    try:
        reply = await runner.model().ask([{"role": "user", "content": given.problem}], sampling)
    except (EngineError, MidstreamError) as error:
        failed = WorkflowRun(answer=None, status=RunStatus.FAILED, error=str(error), cause="infrastructure")
        return _flagged(failed, "direct", reason)
    return _flagged(WorkflowRun(answer=reply.text, status=RunStatus.COMPLETED), "direct", reason)


def _flagged(run: WorkflowRun, layer: str, reason: str) -> WorkflowRun:
    layers: dict[str, FallbackLayer] = {"instantiate": "instantiate", "execute": "execute", "direct": "direct"}
    return replace(run, fallback=layers[layer], fallback_reason=reason)
