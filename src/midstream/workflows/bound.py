"""A workflow as AFlow's users call one: `await workflow(problem)`, with `prompts` that can be replaced."""

from __future__ import annotations

from collections.abc import Mapping

from midstream.core.errors import UserError
from midstream.workflows import ir
from midstream.workflows.problems import WorkflowError, errors
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.trace import RunStatus, WorkflowRun


class BoundWorkflow:
    """A workflow with its runner. `workflow.prompts = prompts` replaces its prompts at run time.

    `last_run` is the trace of the last call."""

    def __init__(self, workflow: ir.Workflow | str, runner: WorkflowRunner) -> None:
        """Raises `WorkflowError` for a text that is not a workflow."""
        if isinstance(workflow, str):
            checked = runner.check(workflow)
            if checked.workflow is None or not checked.ok:
                raise WorkflowError(errors(checked.problems))
            workflow = checked.workflow
        self.graph, self.runner = workflow, runner
        self.last_run: WorkflowRun | None = None

    @property
    def prompts(self) -> Mapping[str, str]:
        return self.graph.prompts

    @prompts.setter
    def prompts(self, prompts: Mapping[str, str]) -> None:
        """Raises `WorkflowError` when the graph refers to a prompt that is not there any more."""
        changed = self.graph.with_prompts(prompts)
        found = errors(self.runner.problems(changed))
        if found:
            raise WorkflowError(found)
        self.graph = changed

    async def __call__(
        self, problem: str, entry_point: str = "", public_tests: tuple[str, ...] = (), seed: int = 0
    ) -> tuple[str, float | None]:
        """The answer and the cost in US dollars, None when it is unknown. Raises `UserError` when the run fails."""
        given = WorkflowInput(problem=problem, entry_point=entry_point, public_tests=public_tests)
        self.last_run = run = await self.runner.run(self.graph, given, seed=seed)
        if run.status is not RunStatus.COMPLETED or run.answer is None:
            raise UserError(f"the workflow {run.status}: {run.error}", "see last_run for what each operator did")
        return run.answer, run.cost_usd
