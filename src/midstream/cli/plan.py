"""`midstream plan`: runs plans durably, shows them, answers their questions, rolls them back, forks them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midstream.cli.store import Age
from midstream.core.text import visible

if TYPE_CHECKING:
    from midstream.plans import AgentExecutor, Handlers, RunResult
    from midstream.plans.rows import NodeRow

FAILED = 1
store_argument = click.argument("store", metavar="STORE")
run_argument = click.argument("run")
handlers_option = click.option(
    "--handlers", "sources", multiple=True, metavar="MODULE", help="A module or Python file that declares handlers."
)
wait_option = click.option("--wait", is_flag=True, help="Wait for answers from elsewhere instead of stopping.")


@click.group(name="plan")
def command() -> None:
    """Run plans: graphs of nodes that survive crashes and are compensated if they fail.

    STORE is the path of a SQLite file, or a postgresql:// URL. RUN is the uid of a run.
    """


@command.command(name="run")
@click.argument("plan", type=click.Path(dir_okay=False))
@click.option("--store", default="plans.sqlite", show_default=True, help="Database of the journal.")
@handlers_option
@click.option("--input", "given", default="{}", help="Input of the plan, as JSON.")
@click.option("--uid", help="Uid of the run. An existing run continues.")
@wait_option
def run_command(plan: str, store: str, sources: tuple[str, ...], given: str, uid: str | None, wait: bool) -> int:
    """Run PLAN, a JSON or YAML file. Exits with 1 unless it succeeds or waits for an answer."""
    from midstream.plans.checks import compile_plan, pinned
    from midstream.plans.plan import load_plan

    handlers, input, loaded = _handlers(sources), _json(given, "--input"), load_plan(plan)
    if "://" not in store and not Path(store).exists():
        compile_plan(pinned(loaded, handlers), handlers)  # a refused plan creates no store

    async def run(executor: AgentExecutor) -> RunResult:
        run_uid = await executor.start(loaded, input, uid=uid)
        click.echo(f"run {run_uid} in {_shown(store)}", err=True)
        return await executor.resume(run_uid, wait=wait)

    return _report(_with_executor(store, handlers, run), store)


@command.command(name="resume")
@store_argument
@run_argument
@handlers_option
@click.option("--retry", is_flag=True, help="Run the failed nodes of a failed run again.")
@wait_option
def resume_command(store: str, run: str, sources: tuple[str, ...], retry: bool, wait: bool) -> int:
    """Continue RUN, which was interrupted, is paused, or waits."""

    async def resume(executor: AgentExecutor) -> RunResult:
        if retry:
            return await executor.retry(run)
        return await executor.resume(run, wait=wait)

    return _report(_with_executor(_existing(store), _handlers(sources), resume), store)


@command.command(name="status")
@store_argument
@click.argument("run", required=False)
def status_command(store: str, run: str | None) -> None:
    """List the runs in STORE, or show the state of every node of RUN."""
    from rich.table import Table

    from midstream.cli.tables import console, seconds
    from midstream.plans import views

    table = Table(box=None, header_style="bold", pad_edge=False)
    with _reading(store) as database:
        if run is None:
            for heading in ("run", "plan", "status", "age", "error"):
                table.add_column(heading, overflow="fold")
            for row in database.read(views.runs):
                error = "" if row.error is None else row.error["message"].partition("\n")[0]
                table.add_row(row.uid, row.name, str(row.status), seconds(views.age_s(row)), error)
            console().print(table)
            return
        view = database.read(lambda connection: views.view(connection, run))
    state = "interrupted: resume it" if view.interrupted else str(view.run.status)
    click.echo(visible(f"{view.run.name}: {state}, revision {view.run.revision}, {view.run.seq} events"))
    for heading in ("node", "state", "handler", "starts", "why"):
        table.add_column(heading, overflow="fold")
    for path, row in sorted(view.nodes.items()):
        if path:
            table.add_row(path, str(row.state), row.handler, str(row.starts), _why(row))
    console().print(table)
    for question in view.questions:
        schema = json.dumps(question.schema)
        click.echo(visible(f"question {question.id} of {question.path}: {question.prompt} {schema}"))


@command.command(name="answer")
@store_argument
@run_argument
@click.argument("question")
@click.argument("value")
def answer_command(store: str, run: str, question: str, value: str) -> None:
    """Answer QUESTION of RUN with VALUE: JSON, or text if the question accepts text. The worker that executes the run
    continues; if there is none, resume the run."""

    async def answer(executor: AgentExecutor) -> None:
        from midstream.plans.errors import AnswerRefused

        try:
            await executor.answer(run, question, _answer(value))
        except AnswerRefused as error:
            try:
                await executor.answer(run, question, value)  # text that looks like JSON: 12, true, null
            except AnswerRefused:
                raise error from None

    _with_executor(_existing(store), (), answer)
    click.echo("answered")


@command.command(name="cancel")
@store_argument
@run_argument
@click.option("--keep", is_flag=True, help="Do not compensate nodes that succeeded.")
def cancel_command(store: str, run: str, keep: bool) -> None:
    """Cancel RUN: its worker, or the next worker that resumes it, stops and compensates it."""
    _with_executor(_existing(store), (), lambda executor: executor.cancel(run, compensate=not keep))
    click.echo("cancelled; if no worker holds the run, resume it to compensate its effects")


@command.command(name="rollback")
@store_argument
@run_argument
@handlers_option
@click.option("--to", metavar="SAVEPOINT", help="Only nodes after this savepoint; resume continues from there.")
def rollback_command(store: str, run: str, sources: tuple[str, ...], to: str | None) -> int:
    """Compensate the nodes of RUN that succeeded, in reverse order."""
    done = _with_executor(_existing(store), _handlers(sources), lambda executor: executor.rollback(run, to))
    return _report(done, store, successful=("rolled_back", "paused"))


@command.command(name="fork")
@store_argument
@run_argument
@click.option("--at", type=int, metavar="EVENT", help="Number of the event to continue from. Default: the newest.")
@click.option("--uid", help="Uid of the new run.")
def fork_command(store: str, run: str, at: int | None, uid: str | None) -> None:
    """Create a run that continues from an event of RUN; `resume` executes it."""
    click.echo(_with_executor(_existing(store), (), lambda executor: executor.fork(run, at, new_uid=uid)))


@command.command(name="events")
@store_argument
@run_argument
@click.option("--after", type=int, default=0, help="Only events with a higher number.")
@click.option("--follow", is_flag=True, help="Keep printing until the run ends.")
def events_command(store: str, run: str, after: int, follow: bool) -> None:
    """Print the history of RUN: one event per line, with the number that `--after` and `fork --at` accept."""
    from midstream.plans.views import describe

    async def print_events(executor: AgentExecutor) -> None:
        async for event in executor.events(run, after, follow=follow):
            click.echo(visible(f"{event.seq} {event.kind} {event.path or '-'} {describe(event.data)}"))

    _with_executor(_existing(store), (), print_events)


@command.command(name="show")
@click.argument("source", metavar="PLAN|STORE")
@click.argument("run", required=False)
@click.option("--svg", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write an SVG file instead.")
def show_command(source: str, run: str | None, file: Path | None) -> None:
    """Draw the PLAN file, or RUN in STORE with the states of its nodes."""
    from midstream.cli.tables import console
    from midstream.plans import views
    from midstream.plans.drawing import COLOURS, SYMBOLS, lanes, svg
    from midstream.plans.plan import load_plan
    from midstream.plans.states import NodeState

    rows: dict[str, NodeRow] = {}
    if run is None:
        plan = load_plan(source)
    else:
        with _reading(source) as database:
            view = database.read(lambda connection: views.view(connection, run))
        plan, rows = view.plan, view.nodes
    if file is not None:
        file.write_text(svg(plan, rows), encoding="utf-8")
        click.echo(f"written to {file}")
        return
    terminal = console()
    for line in lanes(plan):
        if line.node is None:
            terminal.print(line.lanes, markup=False)
            continue
        state = rows[line.path].state if line.path in rows else NodeState.PENDING
        handler = line.node.handler or "sub-plan"
        text = f"{line.lanes.format(SYMBOLS[state])}  {line.node.id}  {handler}"
        terminal.print(text + (f"  {state}" if rows else ""), style=COLOURS[state] if rows else None, markup=False)


@command.command(name="prune")
@store_argument
@click.option("--older-than", type=Age(), required=True, help="Only runs that ended longer ago: 12h, 30d.")
def prune_command(store: str, older_than: float) -> None:
    """Delete old runs that have ended, except runs with forks."""
    pruned = _with_executor(_existing(store), (), lambda executor: executor.prune(older_than))
    click.echo(f"{len(pruned)} runs deleted")


def _handlers(sources: tuple[str, ...]) -> Handlers:
    from midstream.plans.load import load_handlers

    return load_handlers(sources)


def _with_executor(store: str, handlers: Handlers | tuple[()], work: Any) -> Any:
    from midstream.plans import AgentExecutor

    async def main() -> Any:
        async with AgentExecutor(store, handlers) as executor:
            return await work(executor)

    return asyncio.run(main())


def _report(result: RunResult, store: str, successful: tuple[str, ...] = ("succeeded", "waiting", "paused")) -> int:
    """Print the status of a run: its output to stdout, the rest to stderr."""
    if result.status == "succeeded":
        click.echo(visible(json.dumps(result.output, ensure_ascii=False)))
    colour = "green" if result.status in successful else "red"
    click.secho(str(result.status), fg=colour, bold=True, nl=False, err=True)
    click.echo(visible(f": {result.error}" if result.error else ""), err=True)
    if result.refused:
        click.secho(visible(f"refused: {result.refused}"), fg="red", err=True)
    if result.remains:
        click.echo(visible(f"effects that remain: {', '.join(result.remains)}"), err=True)
    for question in result.questions:
        schema = json.dumps(question.schema)
        click.echo(visible(f"{question.path} asks: {question.prompt} (an answer that fits {schema})"), err=True)
        click.echo(visible(f"  midstream plan answer {_shown(store)} {result.uid} {question.id} VALUE"), err=True)
    return 0 if result.status in successful and not result.refused else FAILED


def _why(row: NodeRow) -> str:
    if row.undo_error is not None:
        return f"its compensation: {row.undo_error['message']}"
    return row.reason or ("" if row.error is None else row.error["message"].partition("\n")[0])


def _shown(store: str) -> str:
    """Return `store` without the password that a URL may contain."""
    if "://" not in store:
        return store
    import sqlalchemy as sa

    return sa.make_url(store).render_as_string(hide_password=True)


def _existing(store: str) -> str:
    """Return `store` if it exists: a misspelt path must not create a new database."""
    from midstream.core.errors import RunError

    if "://" not in store and not Path(store).is_file():
        raise RunError(f"no store at '{store}'", "check the path; 'midstream plan run' makes one")
    return store


def _reading(store: str) -> Any:
    from midstream.plans import tables
    from midstream.store import Database
    from midstream.store.leases import SCHEMA as LEASES

    database = Database(_existing(store), read_only=True)
    database.require(tables.SCHEMA, LEASES)
    return database


def _json(text: str, option: str) -> Any:
    from midstream.core.errors import ConfigError

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option} is not JSON: {error}") from None


def _answer(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
