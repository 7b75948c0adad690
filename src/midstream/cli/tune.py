"""`midstream tune`: searches for hyper-parameters on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from midstream.learn.tune.study import Trial


@click.command(name="tune")
@click.argument("config", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="Trials in all.")
@click.option("--resume", is_flag=True, help="Continue an interrupted search in its folder.")
def command(config: str, overrides: tuple[str, ...], trials: int, resume: bool) -> int:
    """Search for hyper-parameters of CONFIG.

    Its section `tune` lists settings and their ranges. Every trial is a training run; trials are compared on the
    validation split, and bad ones are stopped early. The test split is not used. The best config goes to best.yaml:

    \b
    midstream tune schedule.yaml --trials 20
    midstream train runs/schedule-tune/best.yaml

    Ctrl-C saves and stops; --resume continues. Exits with 130 when stopped.
    """
    from midstream.api import load_config, tune
    from midstream.cli import INTERRUPTED
    from midstream.cli.tables import console

    resolved = load_config(config, overrides)

    def show(trial: Trial) -> None:
        score = trial.reason if trial.score is None else f"{trial.score:.3f}"
        click.echo(f"trial {trial.number}: {trial.state} {score}  {_settings(trial)}".rstrip())

    result = tune(resolved, trials, resume=resume, on_trial=show)
    metric = "" if resolved.tune is None else resolved.tune.metric
    console().print(trials_table(result.trials, metric))
    if result.config is not None:
        click.echo(f"midstream train {result.config}")
    return INTERRUPTED if result.status == "stopped" else 0


def trials_table(trials: Sequence[Trial], metric: str) -> Table:
    """Return a table of trials, the best first."""
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import number

    settings = list(dict.fromkeys(path for trial in trials for path in trial.settings))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", f"{metric} (val)", *settings, "state"):
        table.add_column(escape(heading), justify="right")
    for trial in sorted(trials, key=lambda one: -float("inf") if one.score is None else one.score, reverse=True):
        values = (escape(_value(trial.settings.get(path))) for path in settings)
        table.add_row(str(trial.number), number(trial.score), *values, trial.state)
    return table


def _settings(trial: Trial) -> str:
    return "  ".join(f"{path}={_value(value)}" for path, value in trial.settings.items())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
