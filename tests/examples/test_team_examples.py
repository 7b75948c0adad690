"""The exercises on several agents: a manager with a writer, a ring of peers, and a team that runs code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_manager_gives_each_question_to_whom_it_suits() -> None:
    assert printed("manager") == [
        "Calculate 2 + 3: calculator (succeeded): 5",
        "Search the capital of Peru: searcher (succeeded): The capital of Peru is Lima.",
        "Write a summary about the capital of Peru: searcher (succeeded), writer (succeeded): "
        "In short: The capital of Peru is Lima.",
    ]


def test_the_ring_goes_round_until_the_proofreader_is_content() -> None:
    lines = printed("peers")
    assert lines[0] == "researcher -> summariser: The capital of Peru is Lima."
    assert [line.partition(" ->")[0] for line in lines[:-1]] == [
        "researcher",
        "summariser",
        "proofreader",
        "researcher",
        "summariser",
    ]
    assert lines[-1] == "answered: Peru's capital is Lima."


def test_the_team_looks_up_runs_code_and_writes() -> None:
    lines = printed("research_team")
    assert lines[2] == "code_executor: python {'code': 'print(round(1285220 / 756950, 2))'} -> 1.7"
    assert lines[-2:] == [
        "text (summariser, succeeded): Peru is 1.7 times as large as Chile.",
        "answered: Peru is 1.7 times as large as Chile.",
    ]


@pytest.mark.parametrize("name", ["manager", "peers", "research_team"])
def test_they_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80
