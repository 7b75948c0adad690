"""Grades programs by hidden tests, in the sandbox.

The program runs first, in its own session; the tests follow one by one, so that the program cannot read them while it
is loaded. A test passes if it ends and returns a word that was drawn after the program was written. A test sees the
program's results as plain data, and its own builtins and modules (`program_tests`), so neither an object that equals
everything nor a replaced builtin helps. The small interpreter lacks the tools for this: there a program with a class
fails.

Not prevented: program and tests share a process, so a program written to take over its grader (through the frames of
its caller, the garbage collector, methods of standard library classes, or the socket) succeeds. In the small
interpreter, a program can define a function with the name of a builtin that a test uses.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midstream.rewards.answers import after_thinking
from midstream.tools.sandbox import Sandbox, SandboxConfig, open_sandbox

MAX_CHARS = 100_000
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_LOADER = Path(__file__).with_name("program_tests.py").read_text(encoding="utf-8")
_PYTHON = ("", "python", "py", "python3")

_CLASS = re.compile(r"\bclass\b")


def fenced_programs(text: str) -> list[str]:
    """Return the Python blocks of a text, in order."""
    return [body.strip("\n") for language, body in _FENCE.findall(text) if language.lower() in _PYTHON]


def program_of(answer: str, entry_point: str = "") -> str:
    """Return the program in an answer after its thinking: the last Python block that defines `entry_point`, else the
    last block, else the whole answer."""
    text = after_thinking(answer)
    blocks = fenced_programs(text)
    defines = re.compile(
        rf"^(?:async\s+def|def|class)\s+{re.escape(entry_point)}\b|^{re.escape(entry_point)}\s*=", re.M
    )
    defining = [block for block in blocks if entry_point and defines.search(block)]
    return (defining or blocks or [text])[-1]


def hidden_tests(reference: Any) -> tuple[tuple[str, ...], str]:
    """Return the tests of a reference `{"tests": ..., "entry_point": ...}` and its entry point; no tests for any other
    reference. If a test defines `check(candidate)`, like HumanEval's, `check` is called with the entry point."""
    if not isinstance(reference, Mapping) or "tests" not in reference:
        return (), ""
    given, entry_point = reference["tests"], str(reference.get("entry_point") or "")
    tests = [given] if isinstance(given, str) else [str(test) for test in given]
    called = [
        f"{test}\ncheck({entry_point})" if entry_point and re.search(r"^def check\(", test, re.M) else test
        for test in tests
    ]
    return tuple(called), entry_point


async def passed_tests(answer: str, reference: Any, sandbox: Sandbox | None = None) -> list[bool]:
    """Return for each hidden test of `reference` whether the program of `answer` passes it. Empty without tests.

    Raises `SandboxFailed` if the sandbox fails, and `SandboxUnavailable` if there is none."""
    tests, entry_point = hidden_tests(reference)
    program = program_of(answer, entry_point)
    if not tests or len(program) > MAX_CHARS:
        return [False] * len(tests)
    passed: list[bool] = []
    sandbox = sandbox or await shared_sandbox()
    small = sandbox.name == "interpreter"
    if small and _CLASS.search(program):
        return [False] * len(tests)
    load = program if small else _loading(program)
    async with sandbox.session() as session:
        loaded = (await session.run(load)).ok
        for test in tests:
            if not loaded:
                passed.append(False)
                continue
            word = secrets.token_hex(16)
            called = test if small else f"grader['run']({test!r})"
            result = await session.run(f"{called}\n{word!r}")
            passed.append(result.ok and word in (result.value or ""))
            if result.state_lost:
                loaded = (await session.run(load)).ok
    return passed


def _loading(program: str) -> str:
    """Return the cell that loads a program, in a namespace with its own builtins."""
    return f"""import builtins
grader = {{"__builtins__": dict(vars(builtins)), "__name__": "grader"}}
exec({_LOADER!r}, grader)
del builtins
grader["load"]({program!r})
"""


_SANDBOXES: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[Sandbox]] = weakref.WeakKeyDictionary()


async def shared_sandbox() -> Sandbox:
    """Return the sandbox of this event loop. It keeps no process ready, so it need not be closed."""
    loop = asyncio.get_running_loop()
    if loop not in _SANDBOXES:
        _SANDBOXES[loop] = asyncio.ensure_future(open_sandbox(SandboxConfig(warm=0)))
    opening = _SANDBOXES[loop]
    try:
        return await asyncio.shield(opening)
    except BaseException:
        if opening.done():
            _SANDBOXES.pop(loop, None)
        raise


def share(passed: Sequence[bool]) -> float:
    """Return the share of tests that passed."""
    return sum(passed) / len(passed) if passed else 0.0
