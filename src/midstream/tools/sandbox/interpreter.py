"""The backend `interpreter`: pydantic-monty, a small Python interpreter written in Rust, in separate processes.

Code has no files, network, processes or packages: the language cannot name them. Unsupported features (generators, most
of the standard library) are errors. Only the interpreter itself confines the code, not the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from midstream.core.text import cleaned
from midstream.tools.sandbox.base import Outcome, Result, Sandbox, SandboxFailed, SandboxUnavailable, Session, refusal
from midstream.tools.sandbox.config import Limits, SandboxConfig

if TYPE_CHECKING:
    from pydantic_monty import Monty, MontyCrashedError, MontyError, MontySession

BACKEND = "interpreter"
INSTALL = "pip install 'midstream[sandbox]'"
MAX_VALUE_CHARS = 64 << 10
MAX_SESSIONS = 1024
"""Concurrent sessions; each uses a process of a few MB."""
GRACE_S = 1.0
"""Seconds beyond its time limit after which the process of a call is killed."""
CRASHED = "the interpreter's process ended"


class Interpreter(Sandbox):
    """A pool of interpreter processes. A process serves one session at a time and keeps nothing of it.

    Calls run in threads: the asynchronous client of pydantic-monty 1.4 aborts the program if it ends soon after a call.
    """

    name = BACKEND

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()
        self._pool: Monty | None = None
        self._opening = asyncio.Lock()
        self.turn = asyncio.Semaphore(self._config.concurrency)
        """Acquired during a call."""
        self.opened: set[InterpreterSession] = set()
        self.threads = ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="interpreter")

    def session(self, limits: Limits | None = None) -> InterpreterSession:
        return InterpreterSession(self, limits or self._config.limits)

    async def close(self) -> None:
        await asyncio.gather(*(session.end() for session in tuple(self.opened)))
        pool, self._pool = self._pool, None
        if pool is not None:
            await asyncio.get_running_loop().run_in_executor(self.threads, pool.__exit__, None, None, None)
        self.threads.shutdown(wait=False)

    async def pool(self) -> Monty:
        """Return the pool, opened on first use. Raises `SandboxUnavailable`."""
        async with self._opening:
            if self._pool is None:
                if reason := missing():
                    raise SandboxUnavailable(reason, INSTALL)
                from pydantic_monty import Monty

                pool = Monty(min_processes=1, max_processes=MAX_SESSIONS)
                await asyncio.get_running_loop().run_in_executor(self.threads, pool.__enter__)
                self._pool = pool
            return self._pool


class InterpreterSession(Session):
    """See `base.Session`."""

    def __init__(self, sandbox: Interpreter, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._session: MontySession | None = None
        self._pid = 0
        self._one_at_a_time = asyncio.Lock()

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Result:
        if reason := refusal(code, files or {}, self._limits):
            return Result("refused", detail=reason, backend=BACKEND)
        if files:
            reason = "the interpreter takes no files; they need the backend bubblewrap"
            return Result("refused", detail=reason, backend=BACKEND)
        async with self._one_at_a_time, self._sandbox.turn:
            return await self._run(code)

    async def _run(self, code: str) -> Result:
        if self._session is None:
            pool = await self._sandbox.pool()
            self._session, self._pid = await self._in_thread(_open, pool, self._limits)
            self._sandbox.opened.add(self)
        started, printed = time.monotonic(), _Printed(self._limits.output_kb << 10, self._kill)
        feed = asyncio.ensure_future(self._in_thread(_feed, self._session, code, printed))
        try:
            done, _ = await asyncio.wait({feed}, timeout=self._limits.wall_s + GRACE_S)
            if not done:
                self._kill()
                await asyncio.wait({feed})
        except asyncio.CancelledError:
            self._kill()
            await asyncio.wait({feed})
            await self.close()
            raise
        value, outcome, detail = feed.result()
        if not done:
            outcome, detail = "timeout", f"took longer than {self._limits.wall_s:g} s"
        if printed.full:
            value, outcome, detail = None, "output", f"printed more than {self._limits.output_kb} KB"
        lost = outcome in ("timeout", "memory", "output") or detail == CRASHED
        if lost:
            await self.close()
        return Result(
            outcome=outcome,
            stdout=printed.text("stdout"),
            stderr=printed.text("stderr"),
            value=value,
            detail=detail,
            state_lost=lost,
            wall_s=time.monotonic() - started,
            backend=BACKEND,
        )

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._sandbox.threads, function, *arguments)

    def _kill(self) -> None:
        """Kill the process that runs the current call. The client, its parent, reports a crash."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._sandbox.opened.discard(self)
            await self._in_thread(_close, session)

    async def end(self) -> None:
        """Close, and end a running call."""
        if self._one_at_a_time.locked():
            self._kill()
        async with self._one_at_a_time:
            await self.close()


def _open(pool: Monty, limits: Limits) -> tuple[MontySession, int]:
    """Return a session with its own process, and the id of that process."""
    from pydantic_monty import MontyError

    session = pool.checkout(
        limits={
            "max_feed_duration_secs": min(limits.cpu_s, limits.wall_s),
            "max_memory": limits.memory_mb << 20,
            "max_total_sleep_secs": limits.wall_s,
        }
    )
    try:
        session.__enter__()
    except (MontyError, OSError, RuntimeError) as error:
        raise SandboxFailed(f"the interpreter did not start: {error}") from error
    pid = session.worker_pid
    if pid is None:
        raise SandboxFailed("the interpreter has no process")
    return session, pid


def _feed(session: MontySession, code: str, printed: _Printed) -> tuple[str | None, Outcome, str]:
    """Run one cell; return its value, its outcome and the detail."""
    from pydantic_monty import MontyCrashedError, MontyError

    try:
        return _text(session.feed_run(code, print_callback=printed.take)), "ok", ""
    except MontyCrashedError as error:
        return None, *_crash(error)
    except MontyError as error:
        printed.add("stderr", _traceback(error))
        return None, *_verdict(error)


def _close(session: MontySession) -> None:
    from pydantic_monty import MontyError

    with contextlib.suppress(MontyError):
        session.__exit__(None, None, None)


def _verdict(error: MontyError) -> tuple[Outcome, str]:
    cause = error.exception()
    detail = cleaned(f"{type(cause).__name__}: {cause}")[:1000]
    if isinstance(cause, MemoryError):
        return "memory", detail
    if isinstance(cause, TimeoutError) and "limit exceeded" in detail:
        return "timeout", detail
    if isinstance(cause, NotImplementedError) and "monty" in detail:
        return "refused", f"{detail}; it needs the backend bubblewrap"
    return "error", detail


def _crash(error: MontyCrashedError) -> tuple[Outcome, str]:
    detail = str(error).lower()
    if error.timed_out or "duration" in detail or "deadline" in detail:
        return "timeout", "took longer than allowed"
    if "memory" in detail:
        return "memory", "used more memory than allowed"
    return "error", CRASHED


def _traceback(error: MontyError) -> str:
    return f"{error.display()}\n" if hasattr(error, "display") else f"{error}\n"  # type: ignore[attr-defined]


def _text(value: Any) -> str | None:
    """Return `value` as a notebook shows it."""
    if value is None:
        return None
    try:
        text = cleaned(repr(value))
    except (ValueError, RecursionError):  # an integer too long, or nested too deeply, for Python to print
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."


class _Printed:
    """Printed text of a call, up to a limit for both streams together. Filled from a thread."""

    def __init__(self, limit: int, on_overflow: Callable[[], None]) -> None:
        self._room = limit
        self._on_overflow = on_overflow
        self._parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self.full = False

    def take(self, stream: str, text: str) -> None:
        size = len(text.encode("utf-8", "replace"))
        self.add(stream, text[: self._room])
        if size > self._room and not self.full:
            self.full = True
            self._on_overflow()
        self._room = max(self._room - size, 0)

    def add(self, stream: str, text: str) -> None:
        if text:
            self._parts[stream].append(text)

    def text(self, stream: str) -> str:
        return cleaned("".join(self._parts[stream]))


def missing() -> str:
    """Return why the interpreter cannot run on this machine; empty if it can."""
    if importlib.util.find_spec("pydantic_monty") is None:
        return "the package pydantic-monty is not installed"
    from pydantic_monty._binary import find_monty_binary

    try:
        find_monty_binary()
    except FileNotFoundError as error:
        return f"pydantic-monty has no program to run: {error}"
    return ""
