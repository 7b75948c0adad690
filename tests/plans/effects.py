"""A service outside of the process that is killed: does things, undoes them, and remembers what it was asked to do.

Effects are counted here, so that what a killed process believed does not matter."""

from __future__ import annotations

import json
import os
import socket
import socketserver
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class State:
    """What was done and undone."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undone: list[str] = []
        self.undoable: set[str] = set()
        self.asked: Counter[str] = Counter()

    def carry_out(self, request: dict[str, Any]) -> dict[str, Any]:
        key = str(request.get("key", ""))
        match request["op"]:
            case "do":
                self.asked[key] += 1
                fails = str(request["fails"])
                if fails == "always" or (fails == "first" and "/0." in key):
                    return {"error": "never"}
                if fails == "busy" and self.asked[key] <= 2:
                    return {"error": "busy"}
                # A service with idempotency keys does a thing once for each of them; one without does it every time.
                if request["once"] or key not in self.done:
                    self.done.append(key)
                if request["undoable"]:
                    self.undoable.add(key)
                return {"output": f"{request['what']} done"}
            case "find":
                return {"happened": key in self.done}
            case "undo":
                self.asked[f"{key}/undo"] += 1
                if request["fails"] == "busy" and self.asked[f"{key}/undo"] <= 1:
                    return {"error": "busy"}
                if request["fails"] == "always":
                    return {"error": "never"}
                if key not in self.undone:
                    self.undone.append(key)
                return {}
            case _:
                mine = str(request["run"]) + "/"
                return {
                    "done": [key for key in self.done if key.startswith(mine)],
                    "undone": [key for key in self.undone if key.startswith(mine)],
                    "undoable": [key for key in self.undoable if key.startswith(mine)],
                }


def serve(path: Path) -> int:
    """Start the service in a process of its own; returns its id."""
    state = State()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # the process was killed
                self.answer()

        def answer(self) -> None:
            for line in self.rfile:
                self.wfile.write(json.dumps(state.carry_out(json.loads(line))).encode() + b"\n")

    server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
    server.daemon_threads = True
    if (pid := os.fork()) == 0:
        server.serve_forever()
    server.server_close()
    return pid


class Asked(Protocol):
    """What handlers ask."""

    def ask(self, op: str, **request: Any) -> dict[str, Any]: ...


class Service:
    """A connection to the service, made when it is first used: each process has its own."""

    def __init__(self, path: Path) -> None:
        self._path, self._pid = path, 0

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        if self._pid != os.getpid():
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(self._path))
            self._file = self._socket.makefile("rwb")
            self._pid = os.getpid()
        self._file.write(json.dumps({"op": op, **request}).encode() + b"\n")
        self._file.flush()
        return json.loads(self._file.readline())
