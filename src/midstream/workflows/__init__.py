"""Workflows: operators wired into a graph, with prompts; found by search or written by a policy.

A workflow is a typed IR (`ir`) with two surface forms (`hybrid`, plain code), judged by `checker` and interpreted by
`run.runner`. Nothing that a model wrote is executed as Python in this process.
"""

from midstream.workflows.bound import BoundWorkflow
from midstream.workflows.checker import Checked, check_text, check_workflow, checked_workflow
from midstream.workflows.hybrid import read_workflow, write_code, write_hybrid, write_python
from midstream.workflows.ir import Workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.model import EngineModel, Model, ModelReply, ScriptedModel
from midstream.workflows.operators import OPERATORS, OperatorContext, OperatorSet, operator
from midstream.workflows.problems import Problem, WorkflowError
from midstream.workflows.run.runner import WorkflowInput, WorkflowRunner
from midstream.workflows.run.settings import RunSettings
from midstream.workflows.run.trace import RunStatus, WorkflowRun

__all__ = [
    "OPERATORS",
    "BoundWorkflow",
    "Checked",
    "EngineModel",
    "Model",
    "ModelReply",
    "OperatorContext",
    "OperatorSet",
    "Problem",
    "RunSettings",
    "RunStatus",
    "ScriptedModel",
    "Workflow",
    "WorkflowError",
    "WorkflowInput",
    "WorkflowLimits",
    "WorkflowRun",
    "WorkflowRunner",
    "check_text",
    "check_workflow",
    "checked_workflow",
    "operator",
    "read_workflow",
    "write_code",
    "write_hybrid",
    "write_python",
]
