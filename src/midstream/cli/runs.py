"""`midstream runs`: lists runs with their status and progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from midstream.evaluate.runs import Row, Run


@click.command(name="runs")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(runs_dir: str) -> None:
    """List runs: status, steps, success before and after training."""
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console
    from midstream.evaluate.runs import list_runs, load_run

    runs = [load_run(path) for path in list_runs(runs_dir)]
    if not runs:
        click.echo(f"no runs in '{runs_dir}'; start one with midstream train CONFIG")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "status", "model", "created"):
        table.add_column(heading, overflow="fold")
    for heading in ("step", "reward", "before", "after"):
        table.add_column(heading, justify="right")
    for run in runs:
        facts = (run.path.name, run.status, str(run.info.get("model") or ""), _created(run))
        table.add_row(*map(escape, facts), *_progress(run))
    console().print(table)


def _progress(run: Run) -> tuple[str, str, str, str]:
    from midstream.cli.tables import number, percent

    last: Row = run.rl[-1] if run.rl else {}
    before = run.evaluation("base") or {}
    after = run.evaluation("final", "test") or run.evaluation("final") or (run.evals[-1] if run.evals else {})
    after = after if after is not before else {}
    return (
        str(last.get("step", "")),
        number(last.get("reward")),
        percent(before.get("success")),
        percent(after.get("success")),
    )


def _created(run: Run) -> str:
    return str(run.info.get("created") or "")[:16].replace("T", " ")
