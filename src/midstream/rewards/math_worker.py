"""Process that compares mathematics: one JSON request per line on stdin, one JSON answer per line on stdout.

math-verify passes its input to sympy, which evaluates it and may take unlimited time or memory. Hence a separate
process with a memory limit, which its parent can kill. This protects against accidents, not attacks: it is not a
sandbox.
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
    with suppress(OSError, ValueError):  # not supported on every system; the time limit still applies
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import math_verify

    logging.disable()  # math-verify warns that its own time limit is off; the parent enforces one
    print(json.dumps({"ready": True}), flush=True)
    unlimited: Any = None  # allowed, although the package declares int
    # LaTeX only: the other config returns the first number of text that it cannot parse.
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
