"""`midstream sandbox`: runs a file, prints the result, and exits with 0 only for `ok`."""

from __future__ import annotations

from pathlib import Path

import pytest

from midstream import cli
from midstream.tools.sandbox import bubblewrap, interpreter


@pytest.fixture
def here() -> str:
    """An available backend."""
    import asyncio

    from midstream.tools.sandbox import backends

    available = [backend.name for backend in asyncio.run(backends()) if backend.available]
    if not available:
        pytest.skip("no sandbox on this machine")
    return available[0]


def write(tmp_path: Path, code: str) -> str:
    path = tmp_path / "code.py"
    path.write_text(code)
    return str(path)


def test_a_file_runs_and_prints_its_value(tmp_path: Path, here: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sandbox", "run", write(tmp_path, "print('hi')\n6 * 7"), "--backend", here]) == 0
    printed = capsys.readouterr()
    assert printed.out == "hi\n42\n"
    assert printed.err.startswith(f"ok  {here}")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("1 / 0", "error"),
        ("while True: pass", "timeout"),
        ("x = 'x' * 10**10", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("x = 1\n" * 400_000, "refused"),
    ],
)
def test_every_other_outcome_exits_with_1(
    tmp_path: Path, here: str, capsys: pytest.CaptureFixture[str], code: str, outcome: str
) -> None:
    timeout = "0.5" if outcome == "timeout" else "30"
    assert cli.run(["sandbox", "run", write(tmp_path, code), "--timeout", timeout]) == 1
    assert f"{outcome}  {here}" in capsys.readouterr().err


def test_control_characters_do_not_reach_the_terminal(
    tmp_path: Path, here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.run(["sandbox", "run", write(tmp_path, "print('\\x1b[2J')")])
    assert "\x1b" not in capsys.readouterr().out


def test_files_are_copied_in_and_out(tmp_path: Path, here: str) -> None:
    if here != "bubblewrap":
        pytest.skip("the interpreter takes no files")
    (tmp_path / "in.txt").write_text("words")
    code = write(tmp_path, "open('out.txt', 'w').write(open('in.txt').read().upper())")
    out = tmp_path / "out"
    assert cli.run(["sandbox", "run", code, "--input", str(tmp_path / "in.txt"), "--output", str(out)]) == 0
    assert (out / "out.txt").read_text() == "WORDS"


def test_without_a_sandbox_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bubblewrap, "_checked", ["bubblewrap (bwrap) is not installed\n  apt-get install bubblewrap"])
    monkeypatch.setattr(interpreter, "missing", lambda: "the package pydantic-monty is not installed")
    ran = tmp_path / "ran"
    assert cli.run(["sandbox", "run", write(tmp_path, f"open({str(ran)!r}, 'w')")]) == 2
    printed = capsys.readouterr()
    assert "no sandbox can run code here" in printed.err and "apt-get install bubblewrap" in printed.err
    assert not ran.exists() and not printed.out
    assert cli.run(["sandbox", "list"]) == 0
    printed = capsys.readouterr()
    # Brackets are text, not markup.
    assert printed.out.count("no: ") == 2 and "pip install 'midstream[sandbox]'" in printed.out


def test_doctor_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from midstream.cli.doctor import _sandbox  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(bubblewrap, "_checked", ["bubblewrap (bwrap) is not installed\n  apt-get install bubblewrap"])
    assert (_sandbox().level, "apt-get install bubblewrap" in _sandbox().found) == ("note", True)


@pytest.mark.parametrize("arguments", [["missing.py"], ["--timeout", "0"], ["--backend", "docker"]])
def test_bad_arguments_exit_with_2(tmp_path: Path, arguments: list[str]) -> None:
    assert cli.run(["sandbox", "run", *arguments]) == 2
