"""Controls one sandboxed interpreter from outside: starts, calls, watches and kills it.

Whatever the code does, a call ends: by an answer, by the death of the interpreter, or by a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from typing import Any, cast

from midstream.core.text import cleaned
from midstream.tools.sandbox import launch, seccomp
from midstream.tools.sandbox.base import Outcome, Result, SandboxFailed, safe_name
from midstream.tools.sandbox.config import Limits
from midstream.tools.sandbox.processes import proportional_bytes, usage
from midstream.tools.sandbox.worker import MAX_FILES_OUT, MAX_HEADER, MAX_VALUE_CHARS, encode_frame

START_TIMEOUT_S = 30.0
WATCH_EVERY_S = 0.1
END_TIMEOUT_S = 2.0
BACKEND = "bubblewrap"
REPORTED = ("ok", "error", "memory")
"""Outcomes that the interpreter may report itself."""


class Worker:
    """A sandboxed interpreter. It serves one session and is then killed, never reused."""

    def __init__(self, process: subprocess.Popen[bytes], peer: socket.socket, outputs: tuple[int, int]) -> None:
        self._process = process
        self._peer = peer
        self._outputs = outputs
        self._ended = os.pidfd_open(process.pid)
        self._first = 0
        """The first process of the sandbox's namespace. When it dies, all others die."""
        self._own: set[int] = set()
        self._init = self._interpreter = self._folder = -1
        self._killed = False
        self._gone: asyncio.Future[None] | None = None
        self.busy = False
        """Whether a call is running."""

    @classmethod
    async def start(cls, file_mb: int) -> Worker:
        """Start a worker and wait until it can take a call. Raises `SandboxFailed` with bubblewrap's output.

        It dies with the thread that starts it, so the event loop's thread must outlive it.
        """
        ours, theirs = socket.socketpair()
        pipes = [os.pipe() for _ in range(3)]
        filter_fd = os.memfd_create("seccomp")
        try:
            os.write(filter_fd, seccomp.program())
            os.lseek(filter_fd, 0, os.SEEK_SET)
            info = pipes[2][1]
            words = launch.command(theirs.fileno(), info, filter_fd, launch.own_user(), file_mb)
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                pass_fds=(theirs.fileno(), info, filter_fd),
                env={},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            for read_end, _ in pipes:
                os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(filter_fd)
            for _, write_end in pipes:
                os.close(write_end)
        for descriptor in (pipes[0][0], pipes[1][0]):
            os.set_blocking(descriptor, False)
        ours.setblocking(False)
        worker = cls(process, ours, (pipes[0][0], pipes[1][0]))
        try:
            await asyncio.wait_for(worker._ready(pipes[2][0]), START_TIMEOUT_S)
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            output = _read(worker._outputs[1], 4096).decode(errors="replace").strip()
            await worker.close()
            raise SandboxFailed(f"bubblewrap did not start: {output or error or type(error).__name__}") from None
        except BaseException:
            await worker.close()
            raise
        finally:
            os.close(pipes[2][0])
        return worker

    async def _ready(self, info: int) -> None:
        await self._receive(1 << 10)
        self._first = int(json.loads(os.read(info, 4096))["child-pid"])
        self._init = os.pidfd_open(self._first)
        # No foreign code has run yet: the first process has one child, the interpreter, and /tmp is our mount.
        self._own = set(usage(self._first).pids)
        interpreter = next(pid for pid in self._own if pid != self._first)
        self._interpreter = os.pidfd_open(interpreter)
        self._folder = os.open(f"/proc/{interpreter}/root/tmp", os.O_PATH | os.O_DIRECTORY)

    @property
    def running(self) -> bool:
        """False after it was killed or died."""
        return not self._killed and self._process.poll() is None

    async def call(self, code: str, files: Mapping[str, bytes], limits: Limits) -> Result:
        """Run `code`. Afterwards the worker is frozen until its next call, or dead if it exceeded a limit."""
        started, before = time.monotonic(), usage(self._first)
        captured = _Captured(self._outputs, limits.output_kb << 10)
        exchange = asyncio.ensure_future(self._exchange(code, files, limits))
        watch = asyncio.ensure_future(self._watch(limits, before.cpu_s))
        reply: _Reply | None = None
        self.busy = True
        try:
            signal.pidfd_send_signal(self._interpreter, signal.SIGCONT)
            await asyncio.wait(
                {exchange, watch, captured.overflow}, timeout=limits.wall_s, return_when=asyncio.FIRST_COMPLETED
            )
            cpu_s = max(usage(self._first).cpu_s - before.cpu_s, 0.0)
            if exchange.done():
                outcome, detail, reply = await self._answer(exchange)
            elif captured.overflow.done():
                outcome, detail = "output", ""
            elif watch.done():
                outcome, detail = watch.result()
            else:
                outcome, detail = "timeout", f"took longer than {limits.wall_s:g} s"
            captured.stop()
            if captured.full and outcome not in ("timeout", "memory"):
                outcome, detail, reply = "output", f"printed more than {limits.output_kb} KB", None
            if reply is not None and not await self._freeze():
                outcome, detail, reply = "error", "processes it started could not be ended", None
        except BaseException:
            self.kill()
            raise
        finally:
            exchange.cancel()
            watch.cancel()
            captured.stop()
            self.busy = False
        if reply is None:
            self.kill()
        header, contents = reply or ({}, {})
        value = header.get("value")
        left_out = header.get("left_out")
        left_out = cast("list[Any]", left_out)[:MAX_FILES_OUT] if isinstance(left_out, list) else []
        return Result(
            outcome=outcome,
            stdout=captured.text(0),
            stderr=captured.text(1),
            value=cleaned(value)[: MAX_VALUE_CHARS + 3] if isinstance(value, str) else None,
            files=contents,
            left_out=tuple(cleaned(name) for name in left_out if isinstance(name, str) and safe_name(cleaned(name))),
            detail=detail,
            state_lost=self._killed,
            wall_s=time.monotonic() - started,
            cpu_s=cpu_s,
            backend=BACKEND,
        )

    async def _answer(self, exchange: asyncio.Future[_Reply]) -> tuple[Outcome, str, _Reply | None]:
        """Return the interpreter's answer, or how it ended without one."""
        error = exchange.exception()
        if error is None:
            header, contents = exchange.result()
            if (outcome := header.get("outcome")) in REPORTED:
                return outcome, cleaned(str(header.get("detail", "")))[:1000], (header, contents)
        if not isinstance(error, EOFError | OSError):
            return "error", "it broke the sandbox's protocol", None
        code = await self._exit_code()
        if code < 0:
            return "error", "it closed its connection to the sandbox", None
        if code == 128 + signal.SIGXCPU:
            return "timeout", "used more CPU time than allowed", None
        if code > 128:
            return "error", f"its process was ended by signal {code - 128}", None
        return "error", f"its process ended with exit code {code}", None

    async def _exchange(self, code: str, files: Mapping[str, bytes], limits: Limits) -> _Reply:
        loop = asyncio.get_running_loop()
        header = {
            "code": code,
            "files": [[name, len(content)] for name, content in files.items()],
            "limits": limits.model_dump(),
        }
        await loop.sock_sendall(self._peer, encode_frame(header, list(files.values())))
        header = await self._receive(MAX_HEADER)
        contents: dict[str, bytes] = {}
        room = limits.file_mb << 20
        for name, size in header.get("files", []):
            if not isinstance(name, str) or not isinstance(size, int) or not 0 <= size <= room:
                raise ValueError("a file that was not announced properly")
            room -= size
            content = await self._exactly(size)
            if safe_name(name):
                contents[name] = content
        return header, contents

    async def _receive(self, limit: int) -> dict[str, Any]:
        size: int = struct.unpack(">I", await self._exactly(4))[0]
        if size > limit:
            raise ValueError("a header that is too long")
        header = json.loads(await self._exactly(size))
        if not isinstance(header, dict):
            raise ValueError("a header that is no object")
        return cast("dict[str, Any]", header)

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        parts = bytearray()
        while len(parts) < size:
            part = await loop.sock_recv(self._peer, min(size - len(parts), 1 << 18))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    async def _watch(self, limits: Limits, cpu_before: float) -> tuple[Outcome, str]:
        """Return when all processes together exceed a limit."""
        memory = limits.memory_mb << 20
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = usage(self._first)
            if now.cpu_s - cpu_before > limits.cpu_s:
                return "timeout", f"used more than {limits.cpu_s:g} s of CPU time"
            if now.resident_bytes > memory and proportional_bytes(now.pids) > memory:
                return "memory", f"used more than {limits.memory_mb} MB of memory"
            status = os.fstatvfs(self._folder)
            if status.f_files - status.f_ffree > limits.files:
                return "output", f"made more than {limits.files} files"

    async def _freeze(self) -> bool:
        """Stop the interpreter until its next call. Returns False if other processes of the code cannot be ended."""
        try:
            signal.pidfd_send_signal(self._interpreter, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        for _ in range(10):
            others = set(usage(self._first).pids) - self._own
            if not others:
                return True
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    if pid in usage(self._first).pids:  # the same process, not a later one with its id
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    os.close(handle)
            await asyncio.sleep(0.001)
        return False

    def kill(self) -> None:
        """Kill every process of the sandbox. `close` waits for their end."""
        if not self._killed:
            self._killed = True
            if self._init >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._init, signal.SIGKILL)
            self._process.kill()

    async def close(self) -> None:
        """Kill all processes, wait for their end, and release all resources. Must not be called during a call."""
        self.kill()
        await self._end()
        self.dispose()

    def dispose(self) -> None:
        """Release all resources of a killed worker. Blocks until its processes have ended, unless `close` waited."""
        if self._ended < 0:
            return
        if self._gone is not None and not self._gone.done():
            self._gone.get_loop().remove_reader(self._ended)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self._peer.close()
        for descriptor in (self._ended, self._init, self._interpreter, self._folder, *self._outputs):
            if descriptor >= 0:
                os.close(descriptor)
        self._ended = -1

    async def _exit_code(self) -> int:
        """Return the interpreter's exit code, or 128 plus the signal that ended it."""
        try:
            await asyncio.wait_for(self._end(), END_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            await self._end()
        return self._process.returncode

    async def _end(self) -> None:
        """Wait until bubblewrap has ended, and everything inside with it."""
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._ended, self._reap, loop, self._gone)
        await asyncio.shield(self._gone)

    def _reap(self, loop: asyncio.AbstractEventLoop, gone: asyncio.Future[None]) -> None:
        loop.remove_reader(self._ended)
        self._process.wait()
        gone.set_result(None)


_Reply = tuple[dict[str, Any], dict[str, bytes]]


class _Captured:
    """Printed text of a call, up to a limit for both streams together."""

    def __init__(self, descriptors: tuple[int, int], limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptors = descriptors
        self._room = limit
        self._parts: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self.full = False
        self.overflow: asyncio.Future[None] = self._loop.create_future()
        for descriptor, part in zip(descriptors, self._parts, strict=True):
            self._loop.add_reader(descriptor, self._take, descriptor, part)

    def _take(self, descriptor: int, part: bytearray) -> None:
        data = _read(descriptor, self._room + 1)
        part += data[: self._room]
        self.full = self.full or len(data) > self._room
        self._room -= min(len(data), self._room)
        if self.full or not data:
            self._loop.remove_reader(descriptor)
        if self.full and not self.overflow.done():
            self.overflow.set_result(None)

    def stop(self) -> None:
        """Read the available rest, and stop reading."""
        for descriptor, part in zip(self._descriptors, self._parts, strict=True):
            self._loop.remove_reader(descriptor)
            if not self.full:
                self._take(descriptor, part)
                self._loop.remove_reader(descriptor)
        self.overflow.cancel()

    def text(self, stream: int) -> str:
        return cleaned(bytes(self._parts[stream]).decode("utf-8", "replace"))


def _read(descriptor: int, size: int) -> bytes:
    """Read up to `size` bytes without waiting."""
    parts: list[bytes] = []
    while size > 0:
        try:
            data = os.read(descriptor, min(size, 1 << 16))
        except BlockingIOError:
            break
        if not data:
            break
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
