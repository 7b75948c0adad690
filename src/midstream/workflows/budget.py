"""The worst case of a workflow: how many model calls a run can make."""

from __future__ import annotations

from collections.abc import Sequence

from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet


def most_model_calls(workflow: ir.Workflow, operators: OperatorSet, limits: WorkflowLimits) -> int:
    """Model calls in the worst case: the dearer branch, every round of every loop. A loop over a list counts
    `limits.loop_count` rounds, which the runner enforces."""

    def invoke(node: ir.Invoke) -> int:
        instance = workflow.instance(node.instance)
        if instance is None or instance.operator not in operators:
            return 0
        constants = {name: value.value for name, value in node.arguments if isinstance(value, ir.Constant)}
        return operators[instance.operator].most_calls({**dict(instance.settings), **constants})

    def rounds(over: ir.Expression | ir.Times) -> int:
        if isinstance(over, ir.Times):
            return over.count
        return len(over.items) if isinstance(over, ir.ListOf) else limits.loop_count

    def block(body: Sequence[ir.Statement]) -> int:
        total = 0
        for one in body:
            if isinstance(one, ir.Invoke):
                total += invoke(one)
            elif isinstance(one, ir.Parallel):
                total += sum(map(invoke, one.branches))
            elif isinstance(one, ir.InvokeEach):
                total += rounds(one.over) * invoke(one.invoke)
            elif isinstance(one, ir.Loop):
                total += rounds(one.over) * block(one.body)
            elif isinstance(one, ir.Branch):
                total += max(block(one.then), block(one.otherwise))
        return total

    return block(workflow.body)
