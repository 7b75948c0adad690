"""Progress of training: a live table on a terminal, else one plain line per step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from midstream.cli.tables import interval, number, percent, seconds
from midstream.core.text import visible

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

    from midstream.evaluate.runs import Row

SHOWN_STEPS = 12
ETA_STEPS = 10
BARS = "▁▂▃▄▅▆▇█"

COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("reward", lambda row: number(row.get("reward"))),
    ("success", lambda row: percent(row.get("success"))),
    ("turns", lambda row: number(row.get("turns"), 1)),
    ("tool err", lambda row: percent(row.get("tool_error_rate"))),
    ("entropy", lambda row: number(row.get("entropy"))),
    ("KL", lambda row: number(row.get("kl"), 4)),
    ("tok/s", lambda row: number(row.get("tokens_per_s"), 0)),
    ("s/step", lambda row: number(row.get("time_s"), 1)),
)


class LiveTable:
    """Callback of the trainer. Use it as a context manager, so that the terminal is always restored."""

    def __init__(self, console: Console | None = None) -> None:
        from midstream.cli.tables import console as new_console

        self._console = console or new_console()
        self._live: Live | None = None
        self._title = self._numerics = ""
        self._max_steps: int | None = None
        self._rows: deque[Row] = deque(maxlen=SHOWN_STEPS)
        self._times: deque[float] = deque(maxlen=ETA_STEPS)
        self._success: list[float] = []
        self._evals: list[Row] = []
        self._warm: Row | None = None
        self._failures = ""
        self._traceback = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def on_start(self, info: dict[str, Any]) -> None:
        """`info`: `name`, `model`, `seed`, `max_steps`, `numerics`, and for a resumed run `step`."""
        self._max_steps = info.get("max_steps")
        facts = [str(info[key]) for key in ("name", "model") if info.get(key)]
        if info.get("seed") is not None:
            facts.append(f"seed {info['seed']}")
        if info.get("step"):
            facts.append(f"resumed after step {info['step']}")
        self._title = "  ".join(facts)
        self._numerics = f"numerics: {info['numerics']}" if info.get("numerics") else ""
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        else:
            click.echo(visible(self._title))
            if self._numerics:
                click.echo(self._numerics)

    def on_metrics(self, row: Row) -> None:
        """One row of `metrics.jsonl`."""
        if row.get("stage") == "warm_start":
            self._warm = row
            self._show(f"warm start, update {row.get('update')}: loss {number(row.get('loss'))}")
            return
        self._rows.append(row)
        if _is_number(row.get("time_s")):
            self._times.append(row["time_s"])
        if _is_number(row.get("success")):
            self._success.append(row["success"])
        self._failures = failures(row)
        of = f"/{self._max_steps}" if self._max_steps else ""
        cells = "  ".join(f"{heading} {cell(row)}" for heading, cell in COLUMNS)
        self._show(f"step {row.get('step')}{of}  {cells}  ETA {self._eta()}")
        self._show_failures(row)

    def on_eval(self, row: Row) -> None:
        """One row of `evals.jsonl`."""
        self._evals.append(row)
        self._failures = failures(row)
        self._show(f"evaluation: {_evaluation(row)}")
        self._show_failures(row)

    def on_finish(self, result: dict[str, Any]) -> None:
        """`result`: `status` and `run_dir`. Prints the before/after table and samples of the run."""
        self._stop()
        if result.get("run_dir"):
            print_outcome(self._console, Path(result["run_dir"]), str(result.get("status") or ""))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
            self._live.stop()
            self._live = None

    def _show(self, line: str) -> None:
        if self._live is not None:
            self._live.update(self._render())
        elif not self._console.is_terminal:
            click.echo(visible(line))

    def _show_failures(self, row: Row) -> None:
        """Show the number of failed attempts, and the first traceback of the run."""
        if self._failures:
            self._show(self._failures)
        traceback = traceback_in(row)
        if traceback and not self._traceback:
            self._traceback = traceback
            # The console prints it above the live table, if there is one.
            self._console.print(traceback, style="dim", markup=False)

    def _eta(self) -> str:
        step = self._rows[-1].get("step") if self._rows else None
        if not self._max_steps or not self._times or not isinstance(step, int):
            return "-"
        return seconds((self._max_steps - step) * sum(self._times) / len(self._times))

    def _render(self) -> Group:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        parts: list[Any] = [Text(self._title, style="bold"), Text(self._numerics, style="dim")]
        parts += [Text(f"{_evaluation(row)}", style="dim") for row in self._evals[-4:]]
        if self._warm is not None and not self._rows:
            parts.append(Text(f"warm start, update {self._warm.get('update')}: loss {number(self._warm.get('loss'))}"))
        if self._rows:
            table = Table(box=None, header_style="bold cyan", pad_edge=False)
            for heading in ("step", *(heading for heading, _ in COLUMNS)):
                table.add_column(escape(heading), justify="right", no_wrap=True)
            for row in self._rows:
                table.add_row(str(row.get("step", "")), *(cell(row) for _, cell in COLUMNS))
            of = f"step {self._rows[-1].get('step')}" + (f" of {self._max_steps}" if self._max_steps else "")
            parts += [table, Text(f"success {sparkline(self._success)}", style="green")]
            parts.append(Text(f"{of}, about {self._eta()} left; Ctrl-C saves and stops", style="dim"))
        if self._failures:
            parts.append(Text(self._failures, style="red"))
        return Group(*parts)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return proportions as a line of at most `width` bars; each bar is the mean of consecutive `values`."""
    count = min(width, len(values))
    bars: list[str] = []
    for index in range(count):
        share = values[index * len(values) // count : (index + 1) * len(values) // count]
        mean = sum(share) / len(share)
        bars.append(BARS[max(0, min(len(BARS) - 1, int(mean * len(BARS))))])
    return "".join(bars)


def print_outcome(console: Console, run_dir: Path, status: str) -> None:
    """Print the outcome of a run: table and sample trajectories from before and after, and its files."""
    from rich.markup import escape

    from midstream.cli.tables import class_report, evaluation_table
    from midstream.evaluate.runs import load_run

    run = load_run(run_dir)
    labels = ("base", "warm start", "final")
    on_test = [row for label in labels if (row := run.evaluation(label, "test"))]
    rows = on_test if len(on_test) > 1 else [row for label in labels if (row := run.evaluation(label))]
    console.print(f"\n[bold]{escape(run.name)}[/bold] {escape(status or run.status)}")
    if rows:
        console.print(evaluation_table(rows))
    for row in rows:
        if by_class := class_report(row):
            console.print(escape(by_class))
    for title, label in (("before", "base"), ("after", "final")):
        sample = next((sample for sample in run.samples if sample.get("label") == label), None)
        if sample is not None:
            _print_sample(console, title, sample)
    files = [str(run.path / name) for name in ("curve.png", "report.html") if (run.path / name).is_file()]
    if files:
        console.print("\n" + "  ".join(escape(file) for file in files))
    console.print(f'midstream ask "..." --run {escape(str(run.path))}', style="dim")


def _print_sample(console: Console, title: str, sample: Row) -> None:
    from rich.markup import escape

    mark = "[green]right[/green]" if sample.get("success") else "[red]wrong[/red]"
    console.print(f"\n[bold]{title}[/bold] {mark}  {escape(str(sample.get('question') or ''))}")
    for turn in sample.get("turns") or []:
        text = " ".join(str(turn.get("text") or turn.get("verdict") or "").split())[:200]
        console.print(f"  {escape(str(turn.get('role') or '')):<10} {escape(text)}")
        if turn.get("tool"):
            result = " ".join(str(turn.get("result") or "").split())[:160]
            console.print(f"  {'':<10} {escape(str(turn['tool']))} -> {escape(result)}", style="dim")


def failures(row: Row) -> str:
    """Return one line about the failed attempts of a step or an evaluation; empty if none failed."""
    errors = row.get("errors") or []
    if not errors:
        return ""
    more = f" (and {len(errors) - 1} other reasons)" if len(errors) > 1 else ""
    return f"{sum(e['count'] for e in errors)} attempts failed: {errors[0]['reason']}{more}"


def traceback_in(row: Row) -> str:
    """Return the first traceback in a row of metrics or evaluations; empty without one."""
    return next((str(error["traceback"]) for error in row.get("errors") or [] if error.get("traceback")), "")


def _evaluation(row: Row) -> str:
    count = f", n = {row['n']}" if row.get("n") else ""
    return f"{row.get('label')} ({row.get('split')}{count}): success {interval(row)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
