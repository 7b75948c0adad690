"""What models and tools write cannot steer the terminal it is shown on."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream import cli
from midstream.cli.live import LiveTable
from midstream.cli.show import _print_list
from midstream.cli.tables import evaluation_table
from midstream.cli.terminal import VisibleConsole
from midstream.cli.trajectory import print_trajectory
from midstream.core.errors import RunError
from midstream.core.text import cleaned
from midstream.core.types import Status, Step, Task, ToolCall, Trajectory
from midstream.record.store import Store

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;ZWNobw==\x07\x9b1A\rall is well\x08\u202e\ud83d"
SHOWN = "\\x1b[2J\\x1b]0;owned"
ATTACKS = ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\r", "\x08", "\u202e", "\ud83d")


def harmless(text: str) -> bool:
    return SHOWN in text and not [attack for attack in ATTACKS if attack in text]


@pytest.fixture
def screen() -> VisibleConsole:
    return VisibleConsole(file=io.StringIO(), force_terminal=True, width=400, highlight=False)


def drawn(screen: VisibleConsole) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def hostile_trajectory(text: str = HOSTILE) -> Trajectory:
    step = Step(prompt_ids=(1,), response_ids=(2,), text=text, role=text)
    call = ToolCall(tool=text, arguments={text: text}, ok=False, result=text, error_kind="raised")
    return Trajectory(
        uid="u",
        prompt_uid="p",
        task=Task(id=text, prompt=text, answer=text, kind=text),
        steps=(step,),
        tool_calls=(call,),
        answer=text,
        status=Status.FAILED,
        error=text,
        rewards={text: 1.0},
        reward=1.0,
    )


def test_a_trajectory_is_shown_with_its_control_characters_escaped(screen: VisibleConsole) -> None:
    print_trajectory(screen, hostile_trajectory(), tokens=True)
    assert harmless(drawn(screen)) and drawn(screen).count(SHOWN) > 8
    assert "\x1b[1;34m" in drawn(screen)  # our own colours work


def test_tables_are_shown_with_control_characters_escaped(screen: VisibleConsole) -> None:
    _print_list(screen, [hostile_trajectory()], 1)
    screen.print(evaluation_table([{"label": HOSTILE, "by_kind": {HOSTILE: {"success": 1.0}}}]))
    assert harmless(drawn(screen))


def test_a_live_view_keeps_its_own_control_codes_and_shows_those_of_others(screen: VisibleConsole) -> None:
    with LiveTable(screen) as live:
        live.on_start({"name": HOSTILE, "model": HOSTILE})
        live.on_metrics({"stage": "rl", "step": 1, "errors": [{"reason": HOSTILE, "count": 1}]})
        live.on_eval({"label": HOSTILE, "split": "val"})
    text = drawn(screen).replace("\r", "")  # which the live view itself goes back to the start of a line with
    assert SHOWN in text and not [attack for attack in ATTACKS if attack in text]
    assert "\x1b[?25l" in text


def test_plain_lines_show_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable(VisibleConsole(file=io.StringIO())) as live:
        live.on_start({"name": HOSTILE})
        live.on_metrics({"stage": "rl", "step": 1, "errors": [{"reason": HOSTILE, "count": 1}]})
    assert harmless(capsys.readouterr().out)


def test_the_samples_at_the_end_of_a_run_are_shown_escaped(screen: VisibleConsole, tmp_path: Path) -> None:
    turn = {"role": HOSTILE, "text": HOSTILE, "tool": HOSTILE, "result": HOSTILE}
    sample = {"label": "final", "question": HOSTILE, "success": True, "turns": [turn]}
    (tmp_path / "run.json").write_text(json.dumps({"name": HOSTILE, "status": "finished"}))
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    LiveTable(screen).on_finish({"status": "finished", "run_dir": str(tmp_path)})
    assert harmless(drawn(screen))


def test_commands_that_list_and_show_are_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"name": HOSTILE, "status": HOSTILE, "model": HOSTILE}))
    with Store(run / "store.sqlite") as store:
        written = hostile_trajectory(cleaned(HOSTILE).replace("\x00", ""))
        store.trajectories.append_sync(replace(written.steps[0], trajectory_uid="u", prompt_uid="p"))
        asyncio.run(store.trajectories.finish(written))
        store.annotations.curate("u", note=HOSTILE)
    for command in (
        ["runs"],
        ["show", "one"],
        ["show", "one", "u"],
        ["store", "curate", str(run / "store.sqlite"), "u"],
    ):
        more = [] if command[0] == "store" else ["--runs-dir", str(tmp_path / "runs")]
        assert cli.run([*command, *more]) == 0
        assert harmless(capsys.readouterr().out), command


def test_errors_and_log_lines_that_quote_a_model_are_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RunError(HOSTILE, HOSTILE)

    monkeypatch.setattr("midstream.api.ask", fail)
    assert cli.run(["ask", "?"]) == 2
    assert harmless(capsys.readouterr().err)
    (handler,) = (one for one in logging.getLogger("midstream").handlers if isinstance(one.formatter, cli._Visible))
    record = logging.LogRecord("midstream", logging.INFO, "", 0, "%s", (HOSTILE,), None)
    assert harmless(handler.format(record))
