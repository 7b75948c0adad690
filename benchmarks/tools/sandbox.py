"""Measures a sandbox call, alone and 50 at once, and the latency of the event loop meanwhile.

    make bench-sandbox

Of each backend here: the median of warm calls (a call with an interpreter of its own, and a cell in an open session),
then 50 calls at once, each with work of its own. The heartbeat is a task that sleeps 5 ms again and again: how late it
wakes is how long something held the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from midstream.tools.sandbox import Sandbox, SandboxConfig, backends, open_sandbox

PURE = "sum([n * n for n in range(1000)])"
WORK = "total = 0\nfor n in range({rounds}):\n    total += n * n\ntotal"
BEAT_S = 0.005
TARGET_MS = {"interpreter": 5, "bubblewrap": 60}


async def timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each of `times` calls, one after another."""
    took: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        took.append((time.perf_counter() - started) * 1000)
    return took


async def heartbeat(late_ms: list[float]) -> None:
    """Append how much later than asked each short sleep ended."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(BEAT_S)
        late_ms.append((time.perf_counter() - started - BEAT_S) * 1000)


async def measure(sandbox: Sandbox, calls: int, at_once: int, rounds: int) -> None:
    await timed(lambda: sandbox.run(PURE), 5)
    _report("one call, its own interpreter", await timed(lambda: sandbox.run(PURE), calls))
    async with sandbox.session() as session:
        await session.run(PURE)
        _report("one cell of a session", await timed(lambda: session.run(PURE), calls))
    for what, jobs in (("idle", 0), (f"{at_once} calls at once", at_once)):
        late_ms: list[float] = []
        beating = asyncio.create_task(heartbeat(late_ms))
        started = time.perf_counter()
        if jobs:
            results = await asyncio.gather(*(sandbox.run(WORK.format(rounds=rounds)) for _ in range(jobs)))
            assert all(result.ok for result in results), {result.outcome for result in results}
        else:
            await asyncio.sleep(1)
        took = time.perf_counter() - started
        beating.cancel()
        _report(f"heartbeat late, {what}", late_ms)
        if jobs:
            print(f"  {'all of them':<32} {took * 1000:8.0f} ms, {took / jobs * 1000:.1f} ms a call")


def _report(what: str, milliseconds: list[float]) -> None:
    ordered = sorted(milliseconds)
    p99 = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
    print(f"  {what:<32} {statistics.median(ordered):8.2f} ms median, {p99:8.2f} p99, {ordered[-1]:8.2f} longest")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=200_000, help="loop turns that each of the calls at once works")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load average {load:.1f}, Python {platform.python_version()}")
    for backend in await backends():
        if not backend.available:
            print(f"{backend.name}: not here: {backend.reason}")
            continue
        print(f"{backend.name} (target: a warm call within {TARGET_MS[backend.name]} ms at the median)")
        sandbox = await open_sandbox(SandboxConfig.model_validate({"backend": backend.name}))
        try:
            await measure(sandbox, arguments.calls, arguments.at_once, arguments.rounds)
        finally:
            await sandbox.close()


def processor() -> str:
    """Return the name of the processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "unknown processor"


if __name__ == "__main__":
    asyncio.run(main())
