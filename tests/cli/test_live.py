"""Progress of training: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from midstream.cli.live import LiveTable, sparkline
from midstream.cli.tables import seconds

START = {"name": "quick", "model": "tiny", "seed": 0, "max_steps": 30}
ROW = {"stage": "rl", "step": 10, "reward": 0.5, "success": 0.25, "turns": 2.04, "tool_error_rate": 0.1, "kl": None}
EVALUATION = {"label": "step 10", "split": "val", "n": 60, "success": 0.7, "low": 0.57, "high": 0.8}


def test_a_log_gets_one_plain_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable(Console(file=io.StringIO())) as live:
        live.on_start(START)
        live.on_metrics({"stage": "warm_start", "step": 0, "update": 3, "loss": 1.25})
        live.on_metrics({**ROW, "time_s": 3.0, "tokens_per_s": 412.3})
        live.on_eval(EVALUATION)
        live.on_finish({"status": "finished"})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "quick  tiny  seed 0",
        "warm start, update 3: loss 1.250",
        "step 10/30  reward 0.500  success 25 %  turns 2.0  tool err 10 %  entropy -  KL -  "
        "tok/s 412  s/step 3.0  ETA 1m00s",
        "evaluation: step 10 (val, n = 60): success 70 % (57-80)",
    ]


def test_a_terminal_gets_a_table_and_is_restored_after_a_crash() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with pytest.raises(RuntimeError), LiveTable(console) as live:
        live.on_start(START)
        live.on_metrics(ROW)
        live.on_eval(EVALUATION)
        raise RuntimeError
    drawn = screen.getvalue()
    for text in ("quick", "s/step", "25 %", "step 10 of 30", "step 10 (val, n = 60): success 70 % (57-80)"):
        assert text in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_the_outcome_shows_results_and_trajectories_before_and_after(run_files: Path) -> None:
    printed = io.StringIO()
    live = LiveTable(Console(file=printed, width=160))
    live.on_finish({"status": "finished", "run_dir": run_files})
    text = printed.getvalue()
    assert "3 % (1-11)" in text and "90 % (80-95)" in text
    assert text.index("before wrong") < text.index("after right")
    assert text.count("What is [bold]2 + 2?") == 2 and text.count("calculator -> 4") == 2


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (float("nan"), "-"), (0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (3900, "1h05m")]
)
def test_durations_are_formatted(value: float | None, text: str) -> None:
    assert seconds(value) == text


@given(st.lists(st.floats(0, 1), max_size=300))
def test_a_sparkline_is_at_most_its_width(values: list[float]) -> None:
    line = sparkline(values, width=40)
    assert len(line) == min(40, len(values))
    if values and min(values) == max(values):
        assert len(set(line)) == 1


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
