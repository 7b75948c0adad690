"""`midstream sandbox`: runs a file like model-written code, and lists the sandboxes of this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from midstream.tools.sandbox import Limits, Result

BACKENDS = ("auto", "bubblewrap", "interpreter")
FAILED = 1


@click.group(name="sandbox")
def command() -> None:
    """Run code in isolation from this machine."""


@command.command(name="run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Limit of wall and CPU time, in seconds.",
)
@click.option("--input", "inputs", multiple=True, type=click.Path(path_type=Path),
              help="A file to place next to the code. Repeatable.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for the files it writes.")
def run_command(file: Path, backend: str, timeout: float | None, inputs: tuple[Path, ...], output: Path | None) -> int:
    """Run FILE and print its output, its last value and the outcome: ok, error, timeout, memory, output, refused.

    Exits with 0 for ok, with 1 for any other outcome, and with 2 if this machine has no sandbox.
    """
    from midstream.core.errors import UserError
    from midstream.tools.sandbox import Limits

    try:
        code = file.read_text(encoding="utf-8")
        files = {path.name: path.read_bytes() for path in inputs}
    except UnicodeDecodeError:
        raise UserError(f"'{file}' is not UTF-8 text", "give a Python file") from None
    except OSError as error:
        raise UserError(f"cannot read '{error.filename}': {error.strerror}") from None
    limits = Limits() if timeout is None else Limits(wall_s=timeout, cpu_s=timeout)
    result = asyncio.run(_run(code, files, backend, limits))
    _show(result)
    if output is not None:
        _save(result, output)
    return 0 if result.ok else FAILED


async def _run(code: str, files: dict[str, bytes], backend: str, limits: Limits) -> Result:
    from midstream.tools.sandbox import SandboxConfig, open_sandbox

    sandbox = await open_sandbox(SandboxConfig.model_validate({"backend": backend, "limits": limits, "warm": 0}))
    try:
        return await sandbox.run(code, files)
    finally:
        await sandbox.close()


def _save(result: Result, folder: Path) -> None:
    """Write the result's files to `folder`. Their names are relative and stay inside it (`base.safe_name`)."""
    from midstream.core.errors import UserError

    try:
        for name, content in result.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write '{error.filename}': {error.strerror}", "give another folder to --output"
        ) from None


def _show(result: Result) -> None:
    """Print output and value to stdout and the rest to stderr, so that the output can be piped."""
    from midstream.core.text import visible

    click.echo(visible(result.stdout), nl=False)
    if result.value is not None:
        click.echo(visible(result.value))
    click.echo(visible(result.stderr), nl=False, err=True)
    colour = "green" if result.ok else "red"
    click.secho(result.outcome, fg=colour, bold=True, nl=False, err=True)
    cpu = "" if result.cpu_s is None else f", {result.cpu_s:.2f} s CPU"
    files = f"; files: {', '.join(result.files)}" if result.files else ""
    detail = f"; {result.detail}" if result.detail else ""
    click.echo(visible(f"  {result.backend}, {result.wall_s:.3f} s{cpu}{files}{detail}"), err=True)


@command.command(name="list")
def list_command() -> None:
    """List the sandboxes, safest first. `auto` selects the first available one."""
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console
    from midstream.tools.sandbox import backends

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("name", "runs", "available"):
        table.add_column(heading, overflow="fold")
    for backend in asyncio.run(backends()):
        here = "yes" if backend.available else escape(f"no: {backend.reason}")
        table.add_row(backend.name, backend.runs, here)
    console().print(table)
