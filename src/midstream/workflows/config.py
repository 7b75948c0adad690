"""Config of a workflow search and of a comparison: tasks, models, operators, limits and budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from midstream.core.config import Config, apply_overrides, load_yaml, parse_config
from midstream.core.errors import nearest
from midstream.tasks import TasksConfig
from midstream.workflows.executors import ExecutorConfig
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators import AFLOW_SETS, OPERATORS
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.run.settings import RunSettings
from midstream.workflows.search.config import SearchSettings


class WorkflowConfig(Config):
    """A search for a workflow, and the comparison of workflows."""

    name: str = "workflow"
    """Name of the folder in `runs_dir`."""
    runs_dir: str = "runs"
    """Where folders of searches are made."""
    tasks: TasksConfig
    """Tasks: `val` chooses, `test` is used once, by the comparison."""
    val_tasks: int = Field(default=50, ge=1)
    """Validation tasks on which candidates are scored."""
    final_tasks: int | None = Field(default=None, ge=1)
    """Further validation tasks, for the choice among the best candidates; null takes as many as `val_tasks`."""
    test_tasks: int = Field(default=100, ge=0)
    """Test tasks of the comparison."""
    executors: dict[str, ExecutorConfig]
    """Models that operators ask, by name; the first is the default."""
    optimizer: str | None = None
    """Executor that proposes changes of workflows and prompts; null changes them at random."""
    operators: str | tuple[str, ...] = ()
    """Operators a workflow may use: AFlow's set for `qa`, `math` or `code`, or names; empty is all."""
    passages: str | None = None
    """What the operator `Search` finds: `facts`, the bundled facts about countries and cities, or texts as in
    `flow.tool_settings.search.documents`; null does not offer it."""
    start: str = "io"
    """The workflow that a search or a prompt optimisation starts from: a baseline, or a file."""
    prompt_runs: int = Field(default=500, ge=1)
    """Runs of workflows that a prompt optimisation may make."""
    run: RunSettings = RunSettings()
    """How one workflow is run."""
    limits: WorkflowLimits = WorkflowLimits()
    """How large a workflow may be."""
    search: SearchSettings = SearchSettings()
    """How the search goes."""
    cache: bool = True
    """Keep replies in the search's folder, so that nothing is paid twice."""

    @model_validator(mode="after")
    def _known(self) -> WorkflowConfig:
        if self.optimizer is not None and self.optimizer not in self.executors:
            raise ValueError(f"optimizer: no executor '{self.optimizer}'; {nearest(self.optimizer, self.executors)}")
        for name in (self.operators,) if isinstance(self.operators, str) else self.operators:
            known = AFLOW_SETS if isinstance(self.operators, str) else OPERATORS
            if name not in known:
                raise ValueError(f"operators: no '{name}'; {nearest(name, known)}")
        return self

    @property
    def operator_set(self) -> OperatorSet:
        """The operators as a set."""
        if isinstance(self.operators, str):
            return OPERATORS.only(AFLOW_SETS[self.operators])
        return OPERATORS.only(self.operators) if self.operators else OPERATORS

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return Path(self.runs_dir) / self.name


def load_workflow_config(source: Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> WorkflowConfig:
    """The config of a YAML file or a mapping, with dotted overrides."""
    data = dict(source) if isinstance(source, Mapping) else load_yaml(source)
    where = "the config" if isinstance(source, Mapping) else f"'{source}'"
    return parse_config(WorkflowConfig, apply_overrides(data, overrides), where)
