"""`math_verify`: equality of mathematics, not of text, by the package of that name: fractions, roots, sets, LaTeX."""

from __future__ import annotations

import atexit
import importlib.util
import json
import selectors
import subprocess
import sys
import tempfile
import threading
from typing import Any

from midstream.core.errors import UserError
from midstream.rewards.graders import extract_answer
from midstream.rewards.numbers import last_number, whole_number

START_TIMEOUT_S = 60.0
"""A process that starts has sympy to load."""


def math_verify(prediction: str, answer: Any, timeout_s: float = 5.0) -> float:
    """1 when `prediction` states something mathematically equal to `answer` (or to one of a list), else 0.

    0 too when the comparison takes longer than `timeout_s` or breaks. Safe to call from any thread; calls wait for each
    other. Raises `UserError` when the package is not there.
    """
    accepted = answer if isinstance(answer, list | tuple) else (answer,)
    golds = [_as_latex(extract_answer(str(one))) for one in accepted if one is not None]
    text = extract_answer(prediction)
    predictions = [_as_latex(text)]
    if text != prediction.strip() or last_number(text) is not None or not any(c.isdigit() for c in text):
        predictions.append(text)  # in prose, math-verify finds the last expression; not in a mere list of candidates
    if not golds or not text:
        return 0.0
    return float(_worker.compare({"golds": golds, "predictions": predictions}, timeout_s))


def _as_latex(text: str) -> str:
    return text if "$" in text or whole_number(text) is not None else f"${text}$"


class _Worker:
    """One process, started when it is first needed and after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, request: dict[str, Any], timeout_s: float) -> bool:
        with self._lock:
            if self._process is None:
                if importlib.util.find_spec("math_verify") is None:
                    raise UserError("grading mathematics needs the package math-verify", "pip install math-verify")
                self._process = self._start()
            reply = self._ask(self._process, request, timeout_s)
            if reply is None:
                self._end()
                return False
            return bool(json.loads(reply)["correct"])

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the process and wait until it can compare; raises `UserError` with its last words when it cannot."""
        command = [sys.executable, "-m", "midstream.rewards.math_worker"]
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
            if self._line(process, START_TIMEOUT_S) is None:
                process.kill()
                process.communicate()
                said.seek(0)
                words = said.read().decode(errors="replace").strip().splitlines()
                raise UserError(
                    f"the process that grades mathematics did not start: {words[-1] if words else 'it said nothing'}",
                    "see whether `python -c 'import math_verify'` works",
                )
        atexit.register(self._end)
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any], timeout_s: float) -> bytes | None:
        """One line of reply; None when the process took too long or died over the request."""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
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
