"""`midstream store`: inspects, exports, imports, curates and prunes a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midstream.core.text import visible

if TYPE_CHECKING:
    from midstream.record.store import Store

QUALITIES = ("good", "unsure", "bad", "reject")
STATES = ("waiting", "ready", "consumed", "stale", "rejected")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

store_argument = click.argument("url_or_path", metavar="STORE")
channel_option = click.option("--channel", help="Only trajectories of this channel.")


class Age(click.ParamType):
    """An age such as `30d`, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        number, unit = (value[:-1], value[-1:]) if value[-1:] in UNITS else (value, "")
        if unit and number.replace(".", "", 1).isdigit():
            return float(number) * UNITS[unit]
        self.fail(f"'{value}' is not an age: give a number and s, m, h or d, such as 30d", param, ctx)


@click.group(name="store")
def command() -> None:
    """Inspect, export, import, curate or prune a store.

    STORE is the path of a SQLite file, such as runs/NAME/store.sqlite, or a postgresql:// URL.
    """


@command.command(name="stats")
@store_argument
@channel_option
def stats_command(url_or_path: str, channel: str | None) -> None:
    """Print the number of trajectories and groups by status."""
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console, seconds
    from midstream.core.types import Status

    with _open(url_or_path, read_only=True) as store:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in ("channel", *Status):
            table.add_column(heading, justify="left" if heading == "channel" else "right")
        for name in [channel] if channel else store.trajectories.channels():
            table.add_row(
                escape(name), *(str(store.trajectories.count(channel=name, status=status)) for status in Status)
            )
        counts, left_out = store.groups.counts(channel), store.groups.left_out(channel)
        branches = store.trajectories.branches(channel)
    console().print(table)
    oldest = counts.pop("oldest_ready_s")
    by_state = ", ".join(f"{count:.0f} {state}" for state, count in counts.items())
    waited = f"; the oldest has been ready for {seconds(oldest)}" if counts["ready"] else ""
    click.echo(f"\ngroups: {by_state}{waited}")
    if branches:
        click.echo("\ncalls that did not extend recorded tokens, and the prompt tokens computed again for them:")
        for one in branches:
            click.echo(f"  {one.cause}: {one.calls} calls, {one.tokens:,} tokens")
    if left_out:
        click.echo(f"{left_out} trajectories ended after their group was leased, and are not trained on")


@command.command(name="export")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False))
@channel_option
@click.option("--status", type=click.Choice(["running", "completed", "failed", "timed_out"]))
@click.option("--prompt-uid", help="Only trajectories of this group.")
@click.option("--min-reward", type=float)
@click.option("--max-reward", type=float)
@click.option("--policy-version", type=int, help="Only trajectories with a step sampled by this version.")
@click.option("--quality", type=click.Choice(QUALITIES), help="Only trajectories curated with this quality.")
@click.option("--tag", help="Only trajectories with this tag, on them or on a step.")
def export_command(url_or_path: str, file: str, status: str | None, **filters: Any) -> None:
    """Write trajectories to FILE (.jsonl or .parquet)."""
    from midstream.core.types import Status
    from midstream.record.exchange import export_to

    with _open(url_or_path, read_only=True) as store:
        count = export_to(store, file, status=Status(status) if status else None, **filters)
    click.echo(f"{count} trajectories in {file}")


@command.command(name="import")
@store_argument
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--existing",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="How to handle trajectories that are already in the store.",
)
def import_command(url_or_path: str, file: str, existing: Any) -> None:
    """Import FILE, written by an export, into STORE; creates STORE if it does not exist."""
    from midstream.record.exchange import import_from
    from midstream.record.store import Store

    with Store(url_or_path) as store:
        done = import_from(store, file, existing)
    click.echo(f"{done.count} trajectories imported" + (f", {done.skipped} skipped" if done.skipped else ""))


@command.command(name="upgrade")
@store_argument
def upgrade_command(url_or_path: str) -> None:
    """Upgrade a STORE written by an older version of Midstream."""
    with _open(url_or_path) as store:
        click.echo(f"{store.where} is up to date: {store.trajectories.count()} trajectories")


@command.command(name="fit-preference")
@store_argument
@channel_option
@click.option("--out", required=True, type=click.Path(dir_okay=False), help="The JSON file to write.")
def fit_preference_command(url_or_path: str, channel: str | None, out: str) -> None:
    """Fit the reward component `preference` to the feedback in a store.

    Pairs the answers to each question by their thumbs and ratings, and each answer with its correction. Set
    reward.preference to the file, and add the component to reward.components.
    """
    from midstream.rewards.preference import fit, pairs_in

    with _open(url_or_path, read_only=True) as store:
        model = fit(pairs_in(store, channel))
    model.save(out)
    share = "" if model.accuracy is None else f"; {model.accuracy:.0%} of held-out pairs are ordered correctly"
    click.echo(f"{model.pairs} pairs{share}")
    click.echo(f"written to {out}")


@command.command(name="prune")
@store_argument
@click.option(
    "--older-than", type=Age(), required=True, help="Only trajectories that ended longer ago than this: 12h, 30d."
)
@channel_option
@click.option(
    "--keep",
    type=click.Choice(STATES),
    multiple=True,
    default=("waiting", "ready"),
    show_default=True,
    help="Keep trajectories whose group is in this state. Repeatable.",
)
@click.option("--vacuum", is_flag=True, help="Return the freed space to the file system; blocks other users meanwhile.")
def prune_command(
    url_or_path: str, older_than: float, channel: str | None, keep: tuple[str, ...], vacuum: bool
) -> None:
    """Delete old trajectories, except running and leased ones."""
    with _open(url_or_path) as store:
        count = store.prune(older_than, channel, keep=keep, vacuum=vacuum)
        click.echo(f"{count} trajectories deleted, {store.trajectories.count()} left")


@command.command(name="curate")
@store_argument
@click.argument("trajectory")
@click.option("--step", "step_index", type=int, help="Curate only this step.")
@click.option("--trainable/--not-trainable", default=None, help="Whether it may carry loss.")
@click.option("--quality", type=click.Choice(QUALITIES), help="'reject' removes a trajectory from its group.")
@click.option("--tag", "tags", multiple=True, help="Replaces the existing tags. Repeatable.")
@click.option("--note")
def curate_command(
    url_or_path: str, trajectory: str, step_index: int | None, tags: tuple[str, ...], **decisions: Any
) -> None:
    """Set how training uses TRAJECTORY; without options, print the current decisions."""
    with _open(url_or_path) as store:
        if tags or any(value is not None for value in decisions.values()):
            store.annotations.curate(trajectory, step_index, tags=tags or None, **decisions)
        store.trajectories.get(trajectory)
        for one in store.annotations.curation(trajectory):
            scope = "whole trajectory" if one.step_index is None else f"step {one.step_index}"
            loss = {None: "", True: "trainable", False: "not trainable"}[one.trainable]
            parts = (scope, loss, one.quality, " ".join(one.tags), one.note)
            click.echo(visible("  ".join(part for part in parts if part)))


def _open(url_or_path: str, *, read_only: bool = False) -> Store:
    """Open an existing store: a misspelt path must not create a new one."""
    from midstream.core.errors import RunError
    from midstream.record.store import Store

    if "://" not in url_or_path and not Path(url_or_path).is_file():
        raise RunError(
            f"no store at '{url_or_path}'", "the store of a run is RUN/store.sqlite; list runs with 'midstream runs'"
        )
    return Store(url_or_path, read_only=read_only)
