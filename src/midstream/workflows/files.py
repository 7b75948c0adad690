"""Reads workflows from files: either form, or a round of AFlow (a folder with `graph.py` and `prompt.py`)."""

from __future__ import annotations

from pathlib import Path

from midstream.core.errors import UserError, nearest
from midstream.workflows import ir
from midstream.workflows.baselines import BASELINES, baseline
from midstream.workflows.checker import Checked, check_text, check_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators import OPERATORS
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import WorkflowError, errors
from midstream.workflows.read_python import read_prompts, read_python

_BYTES_PER_CHAR = 4


def check_file(path: Path, operators: OperatorSet = OPERATORS, limits: WorkflowLimits | None = None) -> Checked:
    """Read and judge a file or a round of AFlow. Raises `UserError` when it cannot be read at all."""
    limits = limits or WorkflowLimits()
    if path.is_dir():
        return _check_round(path, operators, limits)
    return check_text(_text(path, limits), operators, limits)


def load_workflow(
    name: str | Path, operators: OperatorSet = OPERATORS, limits: WorkflowLimits | None = None
) -> ir.Workflow:
    """The workflow of a file, a round of AFlow, or a baseline's name. Raises `UserError` when it must not run."""
    if str(name) in BASELINES:
        return baseline(str(name))
    path = Path(name)
    if not path.exists():
        raise UserError(f"no workflow at '{name}'", f"give a file, or a baseline; {nearest(str(name), BASELINES)}")
    checked = check_file(path, operators, limits)
    if checked.workflow is None or not checked.ok:
        raise UserError(f"'{name}' is not a workflow that may run", WorkflowError(errors(checked.problems)).message)
    return checked.workflow


def _check_round(folder: Path, operators: OperatorSet, limits: WorkflowLimits) -> Checked:
    graph, prompt = folder / "graph.py", folder / "prompt.py"
    if not graph.is_file():
        raise UserError(f"'{folder}' has no graph.py", "give a file, or a folder as AFlow's rounds are")
    try:
        prompts = read_prompts(_text(prompt, limits), limits) if prompt.is_file() else {}
        workflow = read_python(_text(graph, limits), operators, limits, prompts=prompts)
    except WorkflowError as error:
        return Checked(None, error.problems)
    return Checked(workflow, tuple(check_workflow(workflow, operators, limits)))


def _text(path: Path, limits: WorkflowLimits) -> str:
    """The text of a file, not read when it is larger than any workflow may be."""
    try:
        size = path.stat().st_size
        if size > limits.text_chars * _BYTES_PER_CHAR:
            raise UserError(f"'{path}' has {size} bytes; a workflow has at most {limits.text_chars} characters")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not UTF-8 text", "give a file of Python code or JSON") from None
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None
