"""`midstream eval`: evaluates a model, a checkpoint or a run on a task set, with confidence intervals."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from midstream.core.text import visible

if TYPE_CHECKING:
    from midstream.evaluate.runs import Row

LINE_EVERY_S = 10.0


@click.command(name="eval")
@click.argument("config", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", help="A model by name, directory or hub id.")
@click.option("--checkpoint", type=click.Path(), help="A checkpoint directory of a run.")
@click.option("--run", "run_name", help="A run, by name or directory: its last checkpoint.")
@click.option("--tasks", help="A task file, or the name of a task set. Default: the tasks of the run or config.")
@click.option("--question-field", metavar="FIELD", help="With --tasks: the field with the question.")
@click.option("--answer-field", metavar="FIELD", help="With --tasks: the field with the answer.")
@click.option("--id-field", metavar="FIELD", help="With --tasks: the field with the id of a task.")
@click.option("--subset", help="With --tasks: the subset of a data set on the hub.")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Default: all tasks of a file given with --tasks, else test.",
)
@click.option("--n", "count", type=click.IntRange(min=1), help="Only the first N tasks.")
@click.option("--flow", help="The agent flow, by its registered name.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the result, with all attempts, to this JSON file.")
@click.option("--trust", is_flag=True, help="Allow a run from elsewhere to run code of its config; lists it first.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(
    config: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    checkpoint: str | None,
    run_name: str | None,
    tasks: str | None,
    question_field: str | None,
    answer_field: str | None,
    id_field: str | None,
    subset: str | None,
    split: str | None,
    count: int | None,
    flow: str | None,
    out: str | None,
    trust: bool,
    runs_dir: str,
) -> None:
    """Evaluate on held-out tasks: success by kind.

    Samples greedily and reports 95 % intervals. Evaluates the agent of --run, --checkpoint or CONFIG; without these,
    the model of --model (or the default model) with a single response per task:

    \b
    midstream eval --run last
    midstream eval --tasks gsm8k/test.jsonl --n 100
    midstream eval --tasks mine.csv --answer-field target
    """
    from midstream.api import evaluate
    from midstream.cli.tables import class_report, console, evaluation_table, number, seconds

    if config is not None and "=" in config and not Path(config).exists():
        config, overrides = None, (config, *overrides)
    if out is not None:
        _check_writable(Path(out))
    fields = {"question": question_field, "answer": answer_field, "id": id_field, "subset": subset}
    with _ProgressLine() as line:
        row = evaluate(
            config=config,
            model=model,
            checkpoint=checkpoint,
            run=run_name,
            overrides=overrides,
            tasks=tasks,
            fields={name: value for name, value in fields.items() if value is not None},
            split=split,
            n=count,
            flow=flow,
            runs_dir=runs_dir,
            trust=trust,
            progress=line.show,
        )
    console().print(evaluation_table([row]))
    if by_class := class_report(row):
        click.echo(visible(by_class) + "\n")
    click.echo(f"{visible(row['tasks'])}: {number(row['tokens_per_s'], 0)} tokens/s, {seconds(row['time_s'])}")
    _print_errors(row)
    if out is not None:
        _write(Path(out), row)


def _print_errors(row: Row) -> None:
    from midstream.evaluate.evaluation import SHOWN_ERRORS

    errors: list[dict[str, Any]] = row["errors"]
    if not errors:
        return
    failed = sum(error["count"] for error in errors)
    click.echo(f"\n{failed} of {row['n']} attempts failed and count as unsuccessful:")
    for error in errors[:SHOWN_ERRORS]:
        click.echo(visible(f"  {error['count']} x {error['reason']}  (first: {error['task']})"))
    if len(errors) > SHOWN_ERRORS:
        click.echo(f"  and {len(errors) - SHOWN_ERRORS} other reasons")
    if raised := errors[0].get("traceback"):
        click.echo(visible(f"\n{raised}"))


def _check_writable(path: Path) -> None:
    """Raise `RunError` before the evaluation if the output file cannot be written."""
    from midstream.core.errors import RunError

    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise RunError(f"cannot write '{path}': {error.strerror}", "give --out a file in a writable folder") from None
    if path.stat().st_size == 0:
        path.unlink()


def _write(path: Path, row: Row) -> None:
    from midstream.core.errors import RunError

    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write '{path}': {error.strerror}", "free some disk space") from None
    click.echo(f"written to {path}")


class _ProgressLine:
    """Progress of an evaluation on stderr: an updating line on a terminal, else a line every ten seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()
        self._shown = False

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._live:
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, done: int, total: int, tokens_per_s: float) -> None:
        text = f"{done} of {total} done, {tokens_per_s:.0f} tokens/s"
        if self._live:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            click.echo(text, err=True)
        self._shown = True
