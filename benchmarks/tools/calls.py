"""What tool calls cost: the policies around a call, the tool `python`, and 1,000 trajectories with slow tools at once.

    make bench-tools

A call passes argument checks, time limit, statistics, breaker, retry, budget and fallback. The third part runs 1,000
sessions at once, each with three calls of a tool that takes 200 ms, sync and async; one session alone takes 0.6 s.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks.tools.sandbox import processor

from midstream.tools import Toolbox, load_tools, tool
from midstream.tools.load import load
from midstream.tools.sandbox import backends

CALLS = 300
SESSIONS = 1000
TURNS = 3
LATENCY_S = 0.2
TARGET_MS = {"interpreter": 5, "bubblewrap": 60}


@tool
async def slow_async(text: str) -> str:
    """Take 200 ms."""
    await asyncio.sleep(LATENCY_S)
    return text


@tool
def slow_sync(text: str) -> str:
    """Take 200 ms in a thread."""
    time.sleep(LATENCY_S)
    return text


async def timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each of `times` calls, one after another."""
    took: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        took.append((time.perf_counter() - started) * 1000)
    return took


def report(what: str, milliseconds: list[float]) -> None:
    ordered = sorted(milliseconds)
    p99 = ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)]
    print(f"{what:<44} {statistics.median(ordered):8.2f} ms median, {p99:8.2f} p99")


async def policies() -> None:
    session = Toolbox(load_tools(["echo", "multiply"])).session()
    report("a call of a function", await timed(lambda: session.call("echo", {"text": "a"}), CALLS))


async def python(backend: str) -> None:
    loaded = load(["python"], {"python": {"sandbox": {"backend": backend}}})
    box = Toolbox(toolsets=loaded.toolsets)
    async with AsyncExitStack() as resources:
        session = box.session()
        await session.open(resources)
        await session.call("python", {"code": "1"})
        took = await timed(lambda: session.call("python", {"code": "sum([n * n for n in range(1000)])"}), CALLS)
        report(f"python, {backend} (target {TARGET_MS[backend]} ms)", took)


async def many(name: str) -> None:
    box = Toolbox([slow_async, slow_sync])

    async def trajectory() -> None:
        session = box.session()
        for turn in range(TURNS):
            done = await session.call(name, {"text": str(turn)})
            assert done.ok, done.result

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(trajectory() for _ in range(SESSIONS)))
    took = time.perf_counter() - started
    alone, cpu_us = TURNS * LATENCY_S, (time.process_time() - cpu) / SESSIONS / TURNS * 1e6
    print(f"{SESSIONS} trajectories at once, {name:<16} {took:8.2f} s, {took / alone:.2f} x the {alone:g} s of one")
    print(f"{'':<44} {cpu_us:8.0f} us CPU a call")


async def main() -> None:
    load_average = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load average {load_average:.1f}, Python {platform.python_version()}")
    await policies()
    for backend in await backends():
        if backend.available:
            await python(backend.name)
    for name in ("slow_async", "slow_sync"):
        await many(name)


if __name__ == "__main__":
    asyncio.run(main())
