"""`midstream plan`: run, look, answer, resume, roll back, fork, draw."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from midstream.cli import run
from midstream.cli.plan import _report  # pyright: ignore[reportPrivateUsage]
from midstream.plans import RunResult, RunStatus
from midstream.plans.load import load_handlers
from midstream.plans.views import OpenQuestion

HANDLERS = """
from pathlib import Path
from midstream.plans import Context, Handlers, handler

@handler("note", effects="idempotent")
async def note(text: str, number: int = 0) -> str:
    with open("notes", "a") as file:
        file.write(text + "\\n")
    return f"{text} {number}"

@handler("forget", effects="idempotent")
async def forget(args: dict[str, object]) -> None:
    with open("notes", "a") as file:
        file.write(f"not {args['text']}\\n")
"""
PLAN = """
name: notes
nodes:
- {id: a, handler: note, args: {text: a}, compensate: {handler: forget}, savepoint: start}
- {id: q, handler: ask, args: {prompt: "How many?", answer: {type: integer}}, after: [a]}
- {id: b, handler: note, args: {text: b, number: {$ref: q}}, compensate: {handler: forget}}
output: {$ref: b}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "desk.py").write_text(HANDLERS)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def test_a_run_from_its_start_to_its_rollback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "run", "plan.yaml", "--store", "p.db", "--handlers", "desk.py", "--uid", "r"]) == 0
    said = capsys.readouterr().err
    assert "q asks: How many?" in said
    question = re.findall(r"midstream plan answer p.db r (\w+) VALUE", said)[0]
    assert run(["plan", "answer", "p.db", "r", question, "many"]) == 2
    assert "'many' is not of type 'integer'" in capsys.readouterr().err
    assert run(["plan", "answer", "p.db", "r", question, "3"]) == 0
    assert run(["plan", "resume", "p.db", "r", "--handlers", "desk.py"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '"b 3"'
    assert run(["plan", "status", "p.db"]) == 0
    assert re.search(r"^r +notes +succeeded", capsys.readouterr().out, re.MULTILINE)
    assert run(["plan", "rollback", "p.db", "r", "--to", "start", "--handlers", "desk.py"]) == 0
    assert run(["plan", "rollback", "p.db", "r", "--handlers", "desk.py"]) == 0
    assert (folder / "notes").read_text().split("\n") == ["a", "b", "not b", "not a", ""]
    assert run(["plan", "status", "p.db", "r"]) == 0
    assert re.search(r"^a +compensated +note@1", capsys.readouterr().out, re.MULTILINE)


def test_a_fork_is_independent_of_its_origin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["plan", "run", "plan.yaml", "--store", "p.db", "--handlers", "desk.py", "--uid", "r"])
    assert run(["plan", "fork", "p.db", "r", "--uid", "f"]) == 0
    run(["plan", "status", "p.db", "f"])
    question = re.findall(r"question (\w+) of q", capsys.readouterr().out)[0]
    run(["plan", "answer", "p.db", "f", question, "4"])
    assert run(["plan", "resume", "p.db", "f", "--handlers", "desk.py"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '"b 4"'
    run(["plan", "cancel", "p.db", "r"])
    assert run(["plan", "resume", "p.db", "r", "--handlers", "desk.py"]) == 1
    assert "cancelled: Cancelled: it was cancelled" in capsys.readouterr().err
    assert run(["plan", "events", "p.db", "f", "--after", "1"]) == 0
    assert run(["plan", "prune", "p.db", "--older-than", "1h"]) == 0
    assert capsys.readouterr().out.endswith("0 runs deleted\n")


def test_a_plan_is_drawn_in_the_terminal_and_as_svg(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "show", "plan.yaml"]) == 0
    assert capsys.readouterr().out.split("\n") == ["○  a  note", "○  q  ask", "○  b  note", ""]
    run(["plan", "run", "plan.yaml", "--store", "p.db", "--handlers", "desk.py", "--uid", "r"])
    capsys.readouterr()
    assert run(["plan", "show", "p.db", "r"]) == 0
    drawn = capsys.readouterr().out.splitlines()
    assert drawn[0] == "●  a  note@1  succeeded" and drawn[1].startswith("◷  q  ask@1  waiting")
    assert run(["plan", "show", "p.db", "r", "--svg", "p.svg"]) == 0
    text = (folder / "p.svg").read_text()
    assert text.startswith("<svg") and text.count("<rect") == 3 and text.count("<path") == 2


def test_lanes_follow_forks_and_joins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = {"handler": "value"}
    inner = {"nodes": [{"id": "x", **node}, {"id": "y", **node, "after": ["x"]}]}
    nodes = [
        {"id": "a", **node},
        {"id": "b", **node, "after": ["a"]},
        {"id": "c", "plan": inner, "after": ["a"]},
        {"id": "d", **node, "after": ["b", "c"]},
    ]
    (folder / "p.json").write_text(json.dumps({"nodes": nodes}))
    run(["plan", "show", "p.json"])
    assert capsys.readouterr().out == (
        "○  a  value\n├─╮\n│ ○  b  value\n○ │  c  sub-plan\n│ │  ○  x  value\n│ │  ○  y  value\n├─╯\n○  d  value\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing.yaml"], "cannot read the plan 'nothing.yaml'"),
        (["run", "plan.yaml"], "unknown handler 'note'"),
        (["run", "plan.yaml", "--handlers", "nowhere"], "cannot import the handlers 'nowhere'"),
        (["run", "plan.yaml", "--handlers", "desk.py", "--input", "{"], "--input is not JSON"),
        (["resume", "nothing.db", "r"], "no store at 'nothing.db'"),
    ],
)
def test_errors_are_explained(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_run_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run(["plan", "run", "plan.yaml", "--store", "p.db", "--handlers", "desk.py"])
    assert run(["plan", "status", "p.db", "none"]) == 2
    assert "no run 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["plan.yaml --input {", "cyclic.yaml", "nosuch.yaml", "plan.yaml"])
def test_a_refused_plan_creates_no_store(given: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "cyclic.yaml").write_text("{name: c, nodes: [{id: a, handler: note, args: {text: a}, after: [a]}]}")
    handlers = [] if given == "plan.yaml" else ["--handlers", "desk.py"]
    assert run(["plan", "run", *given.split(), "--store", "p.db", *handlers]) == 2
    assert capsys.readouterr().err
    assert not list(folder.glob("p.db*"))


def test_a_refused_rollback_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["plan", "run", "plan.yaml", "--store", "p.db", "--handlers", "desk.py", "--uid", "r"])
    assert run(["plan", "rollback", "p.db", "r", "--to", "nosuch", "--handlers", "desk.py"]) == 1
    assert "refused: the run has not reached a savepoint 'nosuch'" in capsys.readouterr().err
    assert run(["plan", "resume", "p.db", "r", "--retry", "--handlers", "desk.py"]) == 1
    assert "refused: only a failed run can be tried again" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["12", "null", "text"])
def test_an_answer_that_takes_text_takes_any_text(folder: Path, capsys: pytest.CaptureFixture[str], value: str) -> None:
    (folder / "plan.yaml").write_text("nodes: [{id: q, handler: ask, args: {prompt: Who, answer: {type: string}}}]\n")
    run(["plan", "run", "plan.yaml", "--store", "p.db", "--uid", "r"])
    question = re.findall(r"midstream plan answer p.db r (\w+) VALUE", capsys.readouterr().err)[0]
    assert run(["plan", "answer", "p.db", "r", question, value]) == 0
    assert run(["plan", "resume", "p.db", "r"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"q": value}


def test_a_password_in_the_url_of_a_store_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = OpenQuestion("r", "id", "q", "Who?", {}, 0.0, None)
    _report(RunResult("r", RunStatus.WAITING, questions=(asked,)), "postgresql://ann:hush@db/plans")
    said = capsys.readouterr().err
    assert "answer postgresql://ann:***@db/plans r id" in said and "hush" not in said


def test_migrations_are_kept_with_several_sources_of_handlers(folder: Path) -> None:
    declared = "\nhandlers = Handlers([note])\nhandlers.migrate('note', 0, 1)\n"
    (folder / "moved.py").write_text(HANDLERS.replace('"forget"', '"moved_forget"') + declared)
    (folder / "other.py").write_text(HANDLERS.replace('"note"', '"other"').replace('"forget"', '"other_forget"'))
    for sources in (["moved.py:handlers"], ["other.py", "moved.py:handlers"], ["moved.py:handlers", "other.py"]):
        found = load_handlers(sources).migrated("note@0")
        assert found is not None and found[0].full_name == "note@1"
