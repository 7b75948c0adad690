"""The exercises on tools: the toolbox, and the agent that falls back and answers in a schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def printed(name: str) -> list[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_toolbox() -> None:
    assert printed("toolbox") == [
        "30",
        "42",
        "Searching: weather",
        "Lima",
        "[Fallback] tool calc failed: argument 'a' must be a whole number, not the string 'two'; "
        "argument 'b' is missing. Use calc(a: int, b: int)",
        "hello",
    ]


def test_the_question_agent() -> None:
    lines = printed("question_agent")
    assert json.loads(lines[-1].removeprefix("answer: ")) == {"answer": "Atlantis", "source": "archive"}
    assert lines[-2].startswith("search: answered by archive after 2 attempts: Plato calls")
    assert any("the answer does not have the form asked for" in line for line in lines)
