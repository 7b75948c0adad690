"""`midstream show`: prints a run's results and trajectories, or one trajectory turn by turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from midstream.core.types import Trajectory
    from midstream.evaluate.runs import Run
    from midstream.record.store import Store


@click.command(name="show")
@click.argument("run_name", metavar="RUN")
@click.argument("trajectory", required=False)
@click.option("--channel", help="Only trajectories of this channel, such as train or val.")
@click.option("--step", "train_step", type=int, help="Only trajectories of this training step.")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Number of trajectories to list."
)
@click.option("--tokens", is_flag=True, help="With TRAJECTORY: the token ids and log-probabilities of every step.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(
    run_name: str,
    trajectory: str | None,
    channel: str | None,
    train_step: int | None,
    limit: int,
    tokens: bool,
    runs_dir: str,
) -> None:
    """Show a run, or one trajectory of it.

    RUN is a name or its beginning, a directory, or 'last'. TRAJECTORY is a uid or its beginning. Each step is shown
    with the part of its prompt that is new since the previous step, as the model read it.
    """
    from midstream.cli.tables import console
    from midstream.cli.trajectory import print_trajectory
    from midstream.core.errors import RunError
    from midstream.evaluate.runs import find_run, load_run

    run = load_run(find_run(run_name, runs_dir))
    out = console()
    if trajectory is None:
        _print_run(out, run)
    database = run.path / "store.sqlite"
    if not database.is_file():
        if trajectory is not None:
            raise RunError(f"run '{run.name}' has no trajectories: store.sqlite is missing")
        return
    from midstream.learn.data.prompts import decode_of, new_prompts
    from midstream.record.store import Store

    with Store(database, read_only=True) as store:
        if trajectory is not None:
            found = _find(store, trajectory)
            prompts = new_prompts(found, decode_of(str(run.info.get("model") or "")))
            print_trajectory(out, found, tokens=tokens, prompts=prompts)
        else:
            found = list(
                store.trajectories.iterate(channel=channel, train_step=train_step, limit=limit, newest_first=True)
            )
            _print_list(out, found, store.trajectories.count(channel=channel, train_step=train_step))


def _print_run(out: Console, run: Run) -> None:
    from rich.markup import escape

    from midstream.cli.tables import evaluation_table, number, percent, seconds

    out.print(f"[bold]{escape(run.name)}[/bold]  {escape(run.status)}")
    facts = {key: run.info.get(key) for key in ("model", "seed", "created") if run.info.get(key) is not None}
    out.print("  ".join(f"{key} {escape(str(value))}" for key, value in facts.items()), style="dim")
    if run.rl:
        last = run.rl[-1]
        spent = sum(row.get("time_s") or 0 for row in run.metrics)
        out.print(
            f"step {last.get('step')}: reward {number(last.get('reward'))}, success {percent(last.get('success'))}, "
            f"entropy {number(last.get('entropy'))}, KL {number(last.get('kl'), 4)}; {seconds(spent)} of training"
        )
    if run.evals:
        out.print()
        out.print(evaluation_table(run.evals))
    pictures = [name for name in ("curve.png", "report.html") if (run.path / name).is_file()]
    if pictures:
        out.print("\n" + "  ".join(escape(str(run.path / name)) for name in pictures))


def _print_list(out: Console, trajectories: list[Trajectory], count: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import number

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("trajectory", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for heading in ("turns", "reward"):
        table.add_column(heading, justify="right", no_wrap=True)
    # Only these two columns shrink on a narrow terminal.
    table.add_column("question")
    table.add_column("answer")
    for one in trajectories:
        row = (one.uid, one.task.kind, one.status, str(one.turns), number(one.reward, 2))
        texts = (_shortened(one.task.question, 60), _shortened(one.answer or "", 40))
        table.add_row(*(escape(text) for text in (*row, *texts)))
    out.print(f"\n{count} trajectories" + (f", the last {len(trajectories)}:" if count > len(trajectories) else ":"))
    out.print(table)


def _shortened(text: str, characters: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= characters else f"{line[: characters - 1]}…"


def _find(store: Store, name: str) -> Trajectory:
    """Return the trajectory with uid `name`, or the only one whose uid starts with it."""
    from midstream.core.errors import RunError

    matching = store.trajectories.uids_starting(name, 4)
    if len(matching) > 1 and matching[0] != name:
        more = " and more" if len(matching) > 3 else ""
        raise RunError(
            f"several trajectories start with '{name}': {', '.join(matching[:3])}{more}",
            "give a longer part of its uid",
        )
    return store.trajectories.get(matching[0] if matching else name)
