"""The backend `interpreter`: pydantic-monty, a small Python written in Rust, in processes of its own.

Code has no files, no network, no processes and no packages: the language has no way to name them. What it cannot run
(generators, most of the standard library) it says. What holds it is that interpreter alone, not the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from midstream.core.text import cleaned
from midstream.tools.sandbox.base import Outcome, Result, SandboxFailed, SandboxUnavailable, refusal
from midstream.tools.sandbox.config import Limits, SandboxConfig

if TYPE_CHECKING:
    from pydantic_monty import AsyncMonty, AsyncMontySession, MontyError

BACKEND = "interpreter"
INSTALL = "pip install 'midstream[sandbox]'"
MAX_VALUE_CHARS = 64 << 10
GRACE_S = 1.0
"""How long a call may overstay before it is cut off from outside."""


class Interpreter:
    """A pool of interpreter processes; a process is used by one session at a time and forgets it afterwards."""

    name = BACKEND

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()
        self._pool: AsyncMonty | None = None
        self._opening = asyncio.Lock()
        self._turn = asyncio.Semaphore(self._config.concurrency)

    async def run(self, code: str, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Result:
        async with self.session(limits) as session:
            result = await session.run(code, files)
        return replace(result, state_lost=False)

    def session(self, limits: Limits | None = None) -> InterpreterSession:
        return InterpreterSession(self, limits or self._config.limits)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.__aexit__(None, None, None)

    async def pool(self) -> AsyncMonty:
        """The pool, opened when first needed. Raises `SandboxUnavailable`."""
        async with self._opening:
            if self._pool is None:
                if reason := missing():
                    raise SandboxUnavailable(reason, INSTALL)
                from pydantic_monty import AsyncMonty

                pool = AsyncMonty(min_processes=1, max_processes=MAX_PROCESSES)
                await pool.__aenter__()
                self._pool = pool
            return self._pool

    @property
    def turn(self) -> asyncio.Semaphore:
        """Held while a call runs."""
        return self._turn


MAX_PROCESSES = 1024
"""Sessions at once; each holds a process of a few MB."""


class InterpreterSession:
    """See `base.Session`."""

    def __init__(self, sandbox: Interpreter, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._session: AsyncMontySession | None = None
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
        from pydantic_monty import MontyCrashedError, MontyError

        if self._session is None:
            self._session = await self._open()
        started, printed = time.monotonic(), _Printed(self._limits.output_kb << 10)
        feed = asyncio.ensure_future(self._session.feed_run(code, print_callback=printed.take))
        printed.on_overflow(feed)
        value, outcome, detail = None, "ok", ""
        try:
            await asyncio.wait({feed}, timeout=self._limits.wall_s + GRACE_S)
            if printed.full:
                outcome, detail = "output", f"printed more than {self._limits.output_kb} KB"
            elif not feed.done():
                outcome, detail = "timeout", f"took longer than {self._limits.wall_s:g} s"
            else:
                value = _text(feed.result())
        except MontyCrashedError as error:
            outcome, detail = _crash(error)
        except MontyError as error:
            outcome, detail = _verdict(error)
            printed.add("stderr", _traceback(error))
        except asyncio.CancelledError:
            feed.cancel()
            await self.close()
            raise
        feed.cancel()
        lost = outcome not in ("ok", "error", "refused") or detail == CRASHED
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

    async def _open(self) -> AsyncMontySession:
        limits = self._limits
        session = (await self._sandbox.pool()).checkout(
            limits={
                "max_feed_duration_secs": min(limits.cpu_s, limits.wall_s),
                "max_memory": limits.memory_mb << 20,
                "max_total_sleep_secs": limits.wall_s,
            }
        )
        try:
            return await session.__aenter__()
        except Exception as error:
            raise SandboxFailed(f"the interpreter did not start: {error}") from error

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            from pydantic_monty import MontyError

            with contextlib.suppress(MontyError):
                await session.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


CRASHED = "the interpreter's process ended"


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


def _crash(error: Any) -> tuple[Outcome, str]:
    detail = str(error).lower()
    if error.timed_out or "duration" in detail or "deadline" in detail:
        return "timeout", "took longer than allowed"
    if "memory" in detail:
        return "memory", "used more memory than allowed"
    return "error", CRASHED


def _traceback(error: MontyError) -> str:
    return f"{error.display()}\n" if hasattr(error, "display") else f"{error}\n"  # type: ignore[attr-defined]


def _text(value: Any) -> str | None:
    """`value` as a notebook shows it."""
    if value is None:
        return None
    try:
        text = cleaned(repr(value))
    except (ValueError, RecursionError):  # an integer or a nesting that Python does not print
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."


class _Printed:
    """What a call prints, up to a limit for both streams together."""

    def __init__(self, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = limit
        self._parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._feed: asyncio.Future[Any] | None = None
        self.full = False

    def on_overflow(self, feed: asyncio.Future[Any]) -> None:
        """Cancel `feed` when the limit is passed."""
        self._feed = feed

    def take(self, stream: str, text: str) -> None:
        size = len(text.encode("utf-8", "replace"))
        if size > self._room and not self.full:
            self.full = True
            if self._feed is not None:
                self._loop.call_soon_threadsafe(self._feed.cancel)
        self.add(stream, text[: self._room])
        self._room = max(self._room - size, 0)

    def add(self, stream: str, text: str) -> None:
        if text:
            self._parts[stream].append(text)

    def text(self, stream: str) -> str:
        return cleaned("".join(self._parts[stream]))


def missing() -> str:
    """Why the interpreter cannot run here, or an empty text."""
    return "" if importlib.util.find_spec("pydantic_monty") else "the package pydantic-monty is not installed"
