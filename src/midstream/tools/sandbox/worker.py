"""Runs inside the sandbox: receives one cell at a time on a socket, runs it, and sends the result.

Imports only the standard library, because the sandbox's Python runs this file alone. The other side does not trust its
reports, because the code it runs can do everything it can.

A frame, in both directions: a length (4 bytes, big-endian), a JSON header, then the contents of the files it lists, in
order.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import resource
import signal
import socket
import stat
import struct
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any, cast

FOLDER = "/tmp/work"
MAX_HEADER = 1 << 20
"""Size limit of an answer's header, in bytes."""
MAX_VALUE_CHARS = 64 << 10
MAX_LINE_CHARS = 1000
"""Maximum characters of a line in a traceback, which quotes the code and its values."""
MAX_FILES_OUT = 32
SPARE_MEMORY = 48 << 20
"""Memory reserved for this program when the code has used all of its own."""
MAPPED_MEMORY = 4 << 30
"""Address space beyond the memory limit, for libraries, which are mapped."""
CORE_SECONDS = 5

_compile, _exec, _eval, _isinstance, _repr = compile, exec, eval, isinstance, repr
_AST_ONLY, _EXPRESSION, _WHOLE = ast.PyCF_ONLY_AST, ast.Expr, ast.Expression
"""Bound here, so that code that replaces a builtin does not affect later cells."""


def encode_frame(header: dict[str, Any], blobs: list[bytes]) -> bytes:
    """Return the bytes of a frame."""
    head = json.dumps(header).encode()
    return b"".join([struct.pack(">I", len(head)), head, *blobs])


def main(control: int, uid: int) -> None:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # first to go when the machine runs out of memory
    if uid:
        # Root has no process limit. No capabilities are left after this.
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    os.set_inheritable(control, False)
    os.makedirs(FOLDER, exist_ok=True)
    os.chdir(FOLDER)
    sys.path.insert(0, FOLDER)
    sys.argv = [""]
    cast("io.TextIOWrapper", sys.stdout).reconfigure(line_buffering=True)  # a killed process loses its buffered output
    peer = socket.socket(fileno=control)
    kill, wait, own = os.kill, os.waitpid, os.getpid()
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # pickle and dataclasses look up names there
    scope = module.__dict__
    _send(peer, {"ready": True}, [])
    limits: dict[str, float] | None = None
    number = 0
    while (request := _receive(peer)) is not None:
        header, blobs = request
        if limits is None:
            limits = cast("dict[str, float]", header["limits"])
            _limit(limits)
        number += 1
        reply, contents = _call(header["code"], blobs, scope, number, limits)
        if os.getpid() != own:
            os._exit(0)  # a forked child that reached the end of the cell
        with contextlib.suppress(OSError):
            kill(-1, signal.SIGKILL)  # all but this one and the first: processes of the call end with it
        with contextlib.suppress(OSError):
            while wait(-1, 0):
                pass
        _send(peer, reply, contents)


def _limit(limits: dict[str, float]) -> None:
    memory = int(limits["memory_mb"]) << 20
    for what, bound in (
        (resource.RLIMIT_AS, memory + MAPPED_MEMORY),
        (resource.RLIMIT_DATA, memory + SPARE_MEMORY),
        (resource.RLIMIT_NPROC, int(limits["processes"])),
        (resource.RLIMIT_FSIZE, int(limits["file_mb"]) << 20),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        _, hard = resource.getrlimit(what)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(what, (bound, bound))


def _call(
    code: str, files: list[tuple[str, bytes]], scope: dict[str, Any], number: int, limits: dict[str, float]
) -> tuple[dict[str, Any], list[bytes]]:
    """Run one cell; return the header of the answer and the contents of its files."""
    memory = int(limits["memory_mb"]) << 20
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    outcome, detail, value = "ok", "", None
    before: dict[str, tuple[int, ...]] = {}
    contents: list[tuple[str, bytes]] = []
    left_out: list[str] = []
    try:
        for name, content in files:
            _write(name, content)
        before = _listing()
        # The CPU limit is a backstop in case the other side hangs.
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime + limits["cpu_s"]) + CORE_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_DATA, (min(memory, hard), hard))
        shown = _run(code, scope, f"<cell {number}>")
        value = None if shown is None else _text(shown)
        _save_figures(before)
        _save_table(shown, number)
    except SystemExit as error:
        if error.code not in (None, 0):
            outcome, detail = "error", f"exited with {error.code!r}"
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
    except BaseException as error:
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        outcome = "memory" if isinstance(error, MemoryError) else "error"
        detail = _report(error)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        contents, left_out = _changed(before, int(limits["file_mb"]) << 20)
    except (OSError, MemoryError) as error:
        outcome, detail = ("error", f"its files could not be read: {error}") if outcome == "ok" else (outcome, detail)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    reply = {
        "outcome": outcome,
        "detail": detail[:1000],
        "value": value,
        "files": [[name, len(content)] for name, content in contents],
        "left_out": [name[:200] for name in left_out[:MAX_FILES_OUT]],
    }
    return reply, [content for _, content in contents]


def _run(code: str, scope: dict[str, Any], name: str) -> Any:
    """Execute `code`; return the value of its last statement if that is an expression."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    tree = cast("ast.Module", _compile(code, name, "exec", _AST_ONLY))
    last = tree.body[-1] if tree.body else None
    if not _isinstance(last, _EXPRESSION):
        _exec(_compile(tree, name, "exec"), scope)
        return None
    del tree.body[-1]
    _exec(_compile(tree, name, "exec"), scope)
    return _eval(_compile(_WHOLE(last.value), name, "eval"), scope)


def _text(value: Any) -> str:
    text = _repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "..."


def _report(error: BaseException) -> str:
    """Print the traceback like Python, starting at the code's own frames; return its last line."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    try:
        entries = traceback.format_exception(type(error), error, trace)
        lines = [_shortened(line) for line in "".join(entries).splitlines(keepends=True)]
        print("".join(lines), end="", file=sys.stderr)
        return lines[-1].strip()
    except BaseException:  # methods of the exception may be the code's
        return type(error).__name__


def _shortened(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}...\n"


def _save_figures(before: dict[str, tuple[int, ...]]) -> None:
    """Save open figures, unless the code saved an image itself."""
    plots = sys.modules.get("matplotlib.pyplot")
    if plots is None:
        return
    numbers = plots.get_fignums()
    saved = any(name.endswith((".png", ".svg", ".pdf", ".jpg")) and name not in before for name in _listing())
    for number in [] if saved else numbers:
        plots.figure(number).savefig(f"figure-{number}.png")
    plots.close("all")


def _save_table(value: Any, number: int) -> None:
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_csv"):
        value.to_csv(f"table-{number}.csv")


def _write(name: str, content: bytes) -> None:
    path = os.path.join(FOLDER, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def _paths() -> Iterator[tuple[str, os.stat_result]]:
    for folder, folders, names in os.walk(FOLDER):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield os.path.relpath(path, FOLDER), status


def _listing() -> dict[str, tuple[int, ...]]:
    return {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in _paths()}


def _changed(before: dict[str, tuple[int, ...]], room: int) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Return new and changed files that fit into `room` bytes, and the names of the others."""
    found: list[tuple[str, bytes]] = []
    left_out: list[str] = []
    for name, status in _paths():
        if before.get(name) == (status.st_ino, status.st_size, status.st_mtime_ns):
            continue
        if len(found) == MAX_FILES_OUT or status.st_size > room:
            left_out.append(name)
            continue
        with open(os.open(os.path.join(FOLDER, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = file.read(room)
        room -= len(content)
        found.append((name, content))
    return found, left_out


def _send(peer: socket.socket, header: dict[str, Any], blobs: list[bytes]) -> None:
    peer.sendall(encode_frame(header, blobs))


def _receive(peer: socket.socket) -> tuple[dict[str, Any], list[tuple[str, bytes]]] | None:
    head = _exactly(peer, 4)
    if head is None:
        return None
    header = json.loads(_exactly(peer, struct.unpack(">I", head)[0]) or b"{}")
    return header, [(name, _exactly(peer, size) or b"") for name, size in header.get("files", [])]


def _exactly(peer: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = peer.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    sys.path.extend(sys.argv[3:])
    main(int(sys.argv[1]), int(sys.argv[2]))
