"""The process that compares mathematics: one JSON request a line on stdin, one JSON answer a line on stdout.

math-verify hands what it reads to sympy, which evaluates it and may take for ever or all the memory there is. Hence a
process of its own that its parent can end, with a memory limit. It keeps accidents out, not attacks: no sandbox.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from contextlib import suppress
from typing import Any

MEMORY_BYTES = 2 * 2**30


def main() -> None:
    with suppress(OSError, ValueError):  # not every system lets a process limit itself so; the time limit is left
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import math_verify

    logging.disable()  # it warns that its own time limit is off; the parent's is on
    print(json.dumps({"ready": True}), flush=True)
    unlimited: Any = None  # allowed, though the package's types say int
    # LaTeX only: its other config finds the first number of what it cannot read.
    configs = [math_verify.LatexExtractionConfig()]

    def read(latex: str) -> list[Any]:
        return math_verify.parse(f"${latex}$", configs, parsing_timeout=unlimited)

    for line in sys.stdin:
        equal = [
            math_verify.verify(read(gold), read(prediction), timeout_seconds=None)
            for gold, prediction in json.loads(line)["pairs"]
        ]
        print(json.dumps({"equal": equal}), flush=True)


if __name__ == "__main__":
    main()
