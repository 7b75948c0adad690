"""Finds and loads the agent to evaluate or ask: from a run, a checkpoint, a config or a model name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.config import apply_overrides, load_yaml, parse_config
from midstream.core.errors import ConfigError, RunError
from midstream.evaluate.runs import is_run, list_runs, load_run
from midstream.evaluate.trust import insist_trusted, is_ours
from midstream.learn.config import PolicyConfig, TrainConfig

if TYPE_CHECKING:
    from midstream.agents.endpoint import AgentEndpoint
    from midstream.learn.run.setup import TrainingContext

PRECISION = ("numerics", "dtype", "device", "model")
"""Settings of `policy` that determine its numerics."""
BARE_FLOW = "single_step_single_turn_agent"


@dataclass(frozen=True, slots=True)
class AgentSource:
    """Source of an agent: its config, the checkpoint with its weights, and a display name."""

    config: Mapping[str, Any]
    checkpoint: Path | None
    name: str
    ours: bool = True
    """False for a run or checkpoint outside the user's folder of runs: its config may only name built-in parts."""


def find_agent(
    *,
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    runs_dir: str | Path = "runs",
) -> AgentSource:
    """Find the agent given by one of `config`, `run` or `checkpoint`. One from outside `runs_dir` is not `ours`.

    With only `model`, or without any argument, it is that (or the default) model in the simplest flow."""
    named = [
        name for name, value in (("config", config), ("run", run), ("checkpoint", checkpoint)) if value is not None
    ]
    if len(named) > 1:
        raise ConfigError(f"both a {named[0]} and a {named[1]} were given", "each names an agent: give one")
    if model is not None and named and named[0] != "config":
        raise ConfigError(f"both a model and a {named[0]} were given", f"a {named[0]} has its own model: give one")
    if run is not None:
        folder = find_checkpoint(Path(run))
        name = f"{Path(run).name}, {_at(folder)}"
        return AgentSource(load_yaml(folder / "config.yaml"), folder, name, is_ours(folder, runs_dir))
    if checkpoint is not None:
        folder = _checkpoint(Path(checkpoint))
        name = f"{_run_name(folder)}{_at(folder)}"
        return AgentSource(load_yaml(folder / "config.yaml"), folder, name, is_ours(folder, runs_dir))
    if config is not None:
        data = _as_data(config)
        if model is not None:
            data = apply_overrides(data, [f"policy.model={json.dumps(model)}"])
        name = str(data.get("name") or (Path(config).stem if isinstance(config, str | Path) else "run"))
        return AgentSource({"name": name, **data}, None, f"{name}, untrained")
    model = model or PolicyConfig().model
    return AgentSource({"policy": {"model": model}, "flow": {"name": BARE_FLOW}}, None, model)


def load_agent(
    source: AgentSource,
    overrides: Sequence[str] = (),
    *,
    sections: Mapping[str, Mapping[str, Any] | None] | None = None,
    trust: bool = False,
    endpoint: AgentEndpoint | None = None,
) -> TrainingContext:
    """Build the agent and load its weights, with the numerics of its run unless an override changes them; logs a
    warning if this machine cannot reproduce them. `sections` replace whole sections of its config (None: by defaults);
    `overrides` are applied last. `endpoint` accepts the calls of black-box agents.

    Raises `ConfigError` when a config that is not ours names more than built-in parts, unless `trust`."""
    from midstream.engines.torch.compute import submit
    from midstream.engines.torch.numerics import read_recorded
    from midstream.learn.run.setup import build

    data = {key: value for key, value in source.config.items() if not (sections and key in sections)}
    if not source.ours:
        insist_trusted(data, source.name, trust)
    data |= {key: dict(value) for key, value in (sections or {}).items() if value is not None}
    if source.checkpoint is not None and (data.get("tasks") or {}).get("sources"):
        # The store that a run was trained from is not needed, and may be missing or belong to someone else.
        data["rollout"] = {key: value for key, value in (data.get("rollout") or {}).items() if key != "source"}
    overridden = apply_overrides(data, overrides)
    config = parse_config(TrainConfig, overridden, f"the config of '{source.name}'")
    as_run = source.checkpoint is not None and _precision(overridden) == _precision(source.config)
    recorded = read_recorded(source.checkpoint.resolve().parent.parent) if source.checkpoint and as_run else None

    def load() -> TrainingContext:
        parts = build(config, recorded, endpoint, numerics_required=not as_run)
        if source.checkpoint is not None:
            parts.weights.load(source.checkpoint)
        return parts

    return submit(load).result()


def _precision(config: Mapping[str, Any]) -> list[Any]:
    policy = config.get("policy") or {}
    return [policy.get(name) for name in PRECISION]


def last_finished(root: str | Path) -> Path:
    """Return the last finished run in `root`. Raises a `RunError` that names the newest run if none has finished."""
    runs = [load_run(path) for path in list_runs(root)]
    for run in runs:
        if run.status == "finished":
            return run.path
    if not runs:
        raise RunError(f"there is no run in '{root}' yet", "start one with midstream train quickstart")
    newest = runs[0]
    raise RunError(
        f"no run in '{root}' has finished; the last one, '{newest.name}', is {newest.status}",
        f"use its last checkpoint with --run {newest.path}, or continue it with midstream train CONFIG --resume",
    )


def _as_data(config: TrainConfig | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(config, TrainConfig):
        return config.model_dump(mode="json")
    return dict(config) if isinstance(config, Mapping) else load_yaml(config)


def find_checkpoint(path: str | Path) -> Path:
    """Return the newest checkpoint of a run, or `path` if it is a checkpoint. Raises `RunError` if there is none."""
    from midstream.learn.run.checkpoint import checkpoints

    run = Path(path)
    if (run / "state.json").is_file():
        return _checkpoint(run)
    found = checkpoints(run)
    if not found:
        raise RunError(
            f"the run '{run}' has no checkpoint yet", "wait for the first one, or continue the run with --resume"
        )
    return found[-1]


def _checkpoint(path: Path) -> Path:
    if is_run(path):
        raise RunError(f"'{path}' is a run, not a checkpoint of one", f"use --run {path}, or one of its checkpoints/")
    if not (path / "state.json").is_file() or not (path / "config.yaml").is_file():
        raise RunError(f"'{path}' is not a checkpoint", "give a folder such as runs/NAME/checkpoints/step-000010")
    return path


def _at(folder: Path) -> str:
    step = folder.name.removeprefix("step-")
    return f"step {int(step)}" if step.isdigit() else folder.name


def _run_name(folder: Path) -> str:
    run = folder.resolve().parent.parent
    return f"{run.name}, " if is_run(run) else ""
