"""The backend `bubblewrap`: full CPython in Linux namespaces, one set of processes per session.

Blocks the network, files outside, other processes and privileges, and limits CPU, memory, processes, disk and output.
Does not protect against vulnerabilities of the kernel; see docs/sandbox.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from midstream.tools.sandbox.base import Result, Sandbox, SandboxFailed, SandboxUnavailable, Session, refusal
from midstream.tools.sandbox.config import Limits, SandboxConfig
from midstream.tools.sandbox.launch import bwrap
from midstream.tools.sandbox.process import BACKEND, Worker

_checked: list[str] = []
"""The result of a successful `check`, so that bubblewrap is tried once per process."""


class Bubblewrap(Sandbox):
    """Keeps `warm` interpreters ready; each serves one session or call and is then killed."""

    name = BACKEND

    def __init__(self, config: SandboxConfig | None = None) -> None:
        self._config = config or SandboxConfig()
        self._ready: deque[Worker] = deque()
        self._taken: set[Worker] = set()
        self._starting: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self.turn = asyncio.Semaphore(self._config.concurrency)
        """Acquired during a call."""
        self._closed = False

    def session(self, limits: Limits | None = None) -> BubblewrapSession:
        return BubblewrapSession(self, limits or self._config.limits)

    async def close(self) -> None:
        self._closed = True
        if self._starting is not None:
            await self._starting
        for worker in (*self._ready, *self._taken):
            if worker.busy:
                worker.kill()  # its call ends with that and releases it
            else:
                self.release(worker)
        self._ready.clear()
        while self._taken:
            await asyncio.sleep(0.005)
        await asyncio.gather(*self._ending)

    async def take(self, file_mb: int) -> Worker:
        """Return an interpreter that has run nothing yet."""
        if self._closed:
            raise SandboxFailed("the sandbox is closed")
        while file_mb == self._config.limits.file_mb and self._ready:
            worker = self._ready.popleft()
            if worker.running:
                break
            self.release(worker)
        else:
            worker = await Worker.start(file_mb)
        self._taken.add(worker)
        self._refill()
        return worker

    def release(self, worker: Worker) -> None:
        """Kill `worker`, and wait for its end in the background, or with the event loop if that ends first."""
        worker.kill()
        self._taken.discard(worker)
        task = asyncio.ensure_future(worker.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: worker.dispose())

    def _refill(self) -> None:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.ensure_future(self._fill())

    async def _fill(self) -> None:
        while len(self._ready) < self._config.warm and not self._closed:
            try:
                self._ready.append(await Worker.start(self._config.limits.file_mb))
            except SandboxFailed:
                return  # the next call that needs one starts it itself and gets the error


class BubblewrapSession(Session):
    """See `base.Session`."""

    def __init__(self, sandbox: Bubblewrap, limits: Limits) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._worker: Worker | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Result:
        files = files or {}
        if reason := refusal(code, files, self._limits):
            return Result("refused", detail=reason, backend=BACKEND)
        async with self._one_at_a_time, self._sandbox.turn:
            died = self._worker is not None and not self._worker.running
            if died:
                await self.close()
            worker = self._worker or await self._sandbox.take(self._limits.file_mb)
            self._worker = worker
            try:
                result = await worker.call(code, files, self._limits)
            finally:
                if not worker.running:
                    await self.close()
            return replace(result, state_lost=True) if died else result

    async def close(self) -> None:
        if self._worker is not None:
            self._sandbox.release(self._worker)
            self._worker = None


async def check() -> str:
    """Return why bubblewrap cannot run code on this machine; empty if it can. Tries it until it has run once in this
    process."""
    if _checked:
        return _checked[0]
    reason = await _try()
    if not reason:
        _checked.append(reason)
    return reason


async def _try() -> str:
    try:
        bwrap()
        sandbox = Bubblewrap(SandboxConfig(warm=0))
        try:
            result = await sandbox.run("1 + 1")
        finally:
            await sandbox.close()
    except SandboxUnavailable as error:
        return str(error)
    except (SandboxFailed, OSError) as error:
        return f"{error}; it needs root, or a kernel that lets users create namespaces"
    return "" if result.value == "2" else f"a first call came back as {result.outcome}: {result.detail}"
