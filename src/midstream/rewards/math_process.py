"""Client of the process that compares mathematics: starts it on demand and kills it on timeout."""

from __future__ import annotations

import atexit
import importlib.util
import json
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

from midstream.core.errors import UserError
from midstream.rewards.calls import uncounted

START_TIMEOUT_S = 60.0
"""Time limit to start the process, which imports sympy."""


def compare(pairs: Sequence[tuple[str, str]], timeout_s: float) -> list[bool]:
    """Return whether the expressions of each pair are equal, by math-verify: LaTeX without delimiters, the gold answer
    first.

    Returns all False on timeout (`timeout_s`) or failure. Thread-safe; calls wait for each other, which does not count
    towards `reward.timeout_s`. Raises `UserError` when the package is missing.
    """
    if not pairs:
        return []
    return _worker.compare(pairs, timeout_s)


class _Worker:
    """One process, started on demand and again after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, pairs: Sequence[tuple[str, str]], timeout_s: float) -> list[bool]:
        with uncounted():  # the others' turns
            self._lock.acquire()
        try:
            if self._process is None:
                if importlib.util.find_spec("math_verify") is None:
                    raise UserError("grading mathematics needs the package math-verify", "pip install math-verify")
                self._process = self._start()
            reply = self._ask(self._process, pairs, timeout_s)
            if reply is None:
                self._end()
                return [False] * len(pairs)
            return [bool(equal) for equal in json.loads(reply)["equal"]]
        finally:
            self._lock.release()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process and wait until it is ready. Raises `UserError` with its last output line when it fails."""
        command = [sys.executable, "-m", "midstream.rewards.math_worker"]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
            if self._line(process, START_TIMEOUT_S) is None:
                process.kill()
                process.communicate()
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip().splitlines()
                raise UserError(
                    f"the process that grades mathematics did not start: {words[-1] if words else 'no message'}",
                    "see whether `python -c 'import math_verify'` works",
                )
        atexit.register(self._end)
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], pairs: Sequence[tuple[str, str]], timeout_s: float
    ) -> bytes | None:
        """Return one line of reply; None when the process timed out or died."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"pairs": list(pairs)}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._line(process, timeout_s)

    def _line(self, process: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return None
        return process.stdout.readline() or None

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_worker = _Worker()
