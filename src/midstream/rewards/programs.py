"""Grades programs by hidden tests, in the sandbox.

The program and the tests run in two sessions, that is in two processes that see nothing of each other. A test calls the
program by messages (`program_peer`), which are carried here; what the program returns arrives as plain data. So the
program can read no test, and no object that equals everything, replaced builtin, early exit or printed mark makes a
test pass: only the test's own process says that it passed. Their folders are apart, too: a test cannot give the program
a file.

The small interpreter has no files to carry messages in: there the tests follow the program in one session, a program
with a class fails, and so does one that gives a name to something of its own that a test uses as a builtin.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import re
import secrets
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from midstream.rewards.answers import after_thinking
from midstream.tools.sandbox import Limits, Sandbox, SandboxConfig, SandboxFailed, Session, open_sandbox

MAX_CHARS = 100_000
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_PEER = Path(__file__).with_name("program_peer.py").read_text(encoding="utf-8")
MAX_MESSAGE_BYTES = 8 << 20
MAX_MESSAGES = 5_000
"""Messages of one test: calls of the program, of its results, and of functions that the test hands over."""
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
    sandbox = sandbox or await shared_sandbox()
    if sandbox.name == "interpreter":
        return await _passed_in_one_session(program, tests, sandbox)
    limits = Limits()
    grader = _Grader(program, sandbox, limits)
    try:
        return [await grader.passes(test) for test in tests]
    finally:
        await grader.close()


class _Grader:
    """A program and its tests in two sessions. They start with the first test, and anew after one that broke off."""

    def __init__(self, program: str, sandbox: Sandbox, limits: Limits) -> None:
        self._program, self._sandbox, self._limits = program, sandbox, limits
        self._sides: tuple[_Side, _Side] | None = None
        self._loads = True

    async def passes(self, test: str) -> bool:
        """Whether the program passes a test."""
        if self._sides is None and self._loads:
            await self._start()
        if self._sides is None:
            return False
        tests, program = self._sides
        began = time.monotonic()
        message = await tests.run(f"grader['start']({test!r})")
        for _ in range(MAX_MESSAGES):
            if message is None or time.monotonic() - began > self._limits.wall_s:
                break
            reply = await program.run("grader['turn']()", message)
            message = None if reply is None else await tests.run("grader['turn']()", reply)
        passed = message is None and tests.ended and tests.passed
        if not tests.ended:
            await self.close()
        return passed

    async def _start(self) -> None:
        """Load the program. One that fails now will fail again."""
        tests, program = _Side(self._sandbox.session()), _Side(self._sandbox.session())
        self._sides = tests, program
        ready, loaded = await asyncio.gather(tests.load(""), program.load(f"grader['load']({self._program!r})"))
        if not ready:
            raise SandboxFailed("the tests could not be started")
        self._loads = loaded
        if not loaded:
            await self.close()

    async def close(self) -> None:
        sides, self._sides = self._sides, None
        for side in sides or ():
            await side.session.close()


class _Side:
    """One of the two sessions. `ended`: a test has ended by itself; `passed`: and it passed."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ended = self.passed = False
        self._received = 0

    async def load(self, code: str) -> bool:
        """Define `grader`, in a namespace with its own builtins, and run `code`."""
        return (await self.session.run(_DEFINITION + code)).ok

    async def run(self, code: str, message: bytes | None = None) -> bytes | None:
        """Run a cell with a message, and return the message that it sends; None when it sends none."""
        result = await self.session.run(code, None if message is None else {"in": message})
        name = f"out-{self._received + 1}"
        found = result.files.get(name) if result.ok else None
        self._received += found is not None
        self.ended = found is None and not result.state_lost and result.outcome in ("ok", "error")
        self.passed = self.ended and result.ok and result.value == "True"
        return found if found is not None and len(found) <= MAX_MESSAGE_BYTES else None


_DEFINITION = f"""import builtins
grader = {{"__builtins__": dict(vars(builtins)), "__name__": "grader"}}
exec({_PEER!r}, grader)
del builtins
"""


async def _passed_in_one_session(program: str, tests: Sequence[str], sandbox: Sandbox) -> list[bool]:
    """The same in one session, where a test has passed when it returns a word that was drawn after the program was
    written."""
    passed: list[bool] = []
    bound = _bound_names(program)
    if _CLASS.search(program) or bound is None:
        return [False] * len(tests)
    async with sandbox.session() as session:
        loaded = (await session.run(program)).ok
        for test in tests:
            if not loaded or bound & _builtins_in(test):
                passed.append(False)
                continue
            word = secrets.token_hex(16)
            result = await session.run(f"{test}\n{word!r}")
            passed.append(result.ok and word in (result.value or ""))
            if result.state_lost:
                loaded = (await session.run(program)).ok
    return passed


def _bound_names(program: str) -> set[str] | None:
    """Names that a program binds in its module; None when it cannot be parsed."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: set[str] = set()
    left: list[ast.AST] = [tree]
    while left:
        one = left.pop()
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found |= {name for inner in ast.walk(one) if isinstance(inner, ast.Global) for name in inner.names}
            found |= set() if isinstance(one, ast.Lambda) else {one.name}
            continue
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            found.add(one.id)
        elif isinstance(one, ast.alias):
            found.add((one.asname or one.name).partition(".")[0])
        left += ast.iter_child_nodes(one)
    return found


def _builtins_in(test: str) -> set[str]:
    return {one for one in re.findall(r"\w+", test) if hasattr(builtins, one)}


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
