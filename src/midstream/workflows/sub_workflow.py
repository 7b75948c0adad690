"""Makes an operator of a workflow, so that another one can call it."""

from __future__ import annotations

from midstream.workflows import ir
from midstream.workflows.budget import most_model_calls
from midstream.workflows.checker import check_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import Operator, OperatorSet, operator
from midstream.workflows.problems import WorkflowError, errors


def sub_workflow(
    name: str, workflow: ir.Workflow, operators: OperatorSet, limits: WorkflowLimits | None = None
) -> Operator:
    """The operator `name(problem) -> {response}` that runs `workflow`; add it with `operators.with_(...)`.

    `workflow` may call what is in `operators` already, which does not include itself: no cycle can be made. Raises
    `WorkflowError` when the workflow must not run."""
    found = errors(check_workflow(workflow, operators, limits))
    if found:
        raise WorkflowError(found)

    needs = sorted({need for one in workflow.instances for need in operators[one.operator].needs})

    @operator(name=name, calls=most_model_calls(workflow, operators, limits or WorkflowLimits()), needs=tuple(needs))
    async def run(context: OperatorContext, problem: str) -> str:
        """Runs a workflow on a problem and returns its answer."""
        return await context.run_workflow(workflow, problem)

    return run
