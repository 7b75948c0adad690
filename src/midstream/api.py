"""What the package and the command line call: training with its pictures, evaluation, asking, configs from anywhere.

Composes rooms; nothing is decided here. Where a config is taken, so are a mapping of settings and a YAML file's path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.config import apply_overrides, parse_config
from midstream.core.errors import RunError
from midstream.evaluate.ask import ask
from midstream.evaluate.evaluation import evaluate
from midstream.learn.config import TrainConfig
from midstream.learn.config import load_config as _load_file

if TYPE_CHECKING:
    from midstream.learn.listener import Listener
    from midstream.learn.trainer import TrainResult

__all__ = ["ask", "evaluate", "load_config", "train"]

Settings = TrainConfig | Mapping[str, Any] | str | Path
"""A config, a mapping of settings, or the path of a YAML file."""


def load_config(source: Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """The config that a YAML file or a mapping of settings holds, with dotted overrides (`trainer.max_steps=30`).

    Raises `ConfigError` that names everything that is wrong.
    """
    if isinstance(source, Mapping):
        return parse_config(TrainConfig, apply_overrides(dict(source), overrides), "the config")
    return _load_file(source, overrides)


def train(
    config: Settings, *, resume: bool = False, force: bool = False, listeners: Sequence[Listener] | None = None
) -> TrainResult:
    """Train, then draw `curve.png` and write `report.html` in the run's directory, when it was stopped by Ctrl-C too.

    `listeners` hear of each step; with None, a line a step is printed. `resume` goes on with the run in its directory,
    to the same numbers; `force` does so although the config changed. Raises `UserError` for anything the user can mend;
    what was saved stays.
    """
    from midstream.learn import trainer

    resolved = config if isinstance(config, TrainConfig) else load_config(config)
    # First, so that the other listeners can point to what was drawn.
    hearing = [_Lines()] if listeners is None else listeners
    return trainer.train(resolved, resume=resume, force=force, listeners=[_Pictures(), *hearing])


class _Pictures:
    """A listener that draws the curve and writes the report once a run has ended."""

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None:
        from midstream.evaluate.curve import draw_curve
        from midstream.evaluate.report import write_report

        try:
            draw_curve(result["run_dir"])
            write_report(result["run_dir"])
        except OSError as error:
            raise RunError(
                f"the run is saved, but its report cannot be written to '{result['run_dir']}': {error.strerror}",
                "free some disk space; --resume writes it again",
            ) from None


class _Lines:
    """A listener that prints a plain line for each step and each evaluation."""

    def on_start(self, info: dict[str, Any]) -> None:
        print(f"{info['name']}: {info['model']}, {info['max_steps']} steps, in {info['run_dir']}", flush=True)

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["stage"] == "rl":
            reward = "-" if row["reward"] is None else f"{row['reward']:.3f}"
            print(f"step {row['step']}: reward {reward}, success {row['success']:.0%}", flush=True)
            self._tell(row)

    def on_eval(self, row: dict[str, Any]) -> None:
        print(f"{row['label']} ({row['split']}, n = {row['n']}): success {row['success']:.0%}", flush=True)
        self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        for error in row["errors"][:1]:
            print(f"  {error['count']} attempts failed: {error['reason']}", flush=True)

    def on_finish(self, result: dict[str, Any]) -> None:
        print(f"{result['status']}: {result['run_dir']}/report.html", flush=True)
