"""`midstream models`: lists and downloads models known by name, and prints their paths."""

from __future__ import annotations

import click


@click.group(name="models")
def command() -> None:
    """List models, download or create them, print their paths."""


@command.command(name="list")
def list_command() -> None:
    """List the models known by name. Directories and hub ids (org/model) work wherever a name does."""
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console
    from midstream.engines.models import home, list_models

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("name", "description", "cached", "source"):
        table.add_column(heading, overflow="fold")
    for info in list_models():
        here = "no" if info.size_mb is None else f"{info.size_mb:.0f} MB"
        table.add_row(*map(escape, (info.name, info.summary, here, info.source or "")))
    console().print(table)
    click.echo(f"\nstored in {home() / 'models'} (MIDSTREAM_HOME)")


@command.command(name="pull")
@click.argument("name")
@click.option("--force", is_flag=True, help="Recreate a model that is already cached.")
def pull_command(name: str, force: bool) -> None:
    """Download or create model NAME and print its path."""
    from midstream.engines.models import pull

    click.echo(pull(name, force=force))


@command.command(name="path")
@click.argument("name")
def path_command(name: str) -> None:
    """Print the directory of model NAME; fails if it has not been pulled."""
    from midstream.core.errors import ModelError
    from midstream.engines.models import cached, list_models, resolve

    if name in [info.name for info in list_models()] and cached(name) is None:
        raise ModelError(f"'{name}' has not been pulled", f"midstream models pull {name}")
    click.echo(resolve(name))
