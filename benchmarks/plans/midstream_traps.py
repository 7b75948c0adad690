"""Known traps with Midstream. Prints the outcome of one as JSON: `python -m benchmarks.plans.midstream_traps DATABASE
TRAP`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from midstream.core.errors import UserError
from midstream.plans import AgentExecutor, Context, Handler, handler


async def barrier(path: Path) -> str:
    """When a node starts whose only parent takes no time, beside a node that takes a second."""
    began = started = 0.0

    @handler("slow", effects="none")
    async def slow() -> None:
        await asyncio.sleep(1.0)

    @handler("after", effects="none")
    async def after() -> None:
        nonlocal started
        started = time.perf_counter() - began

    nodes = [{"id": "slow", "handler": "slow"}, {"id": "fast", "handler": "value"}]
    async with AgentExecutor(path, [slow, after]) as executor:
        began = time.perf_counter()
        await executor.run({"nodes": [*nodes, {"id": "after", "handler": "after", "after": ["fast"]}]})
    return f"starts after {started:.2f} s"


async def effects(path: Path) -> str:
    """How often an effect before a question happens."""
    count = 0

    @handler("asks", effects="steps")
    async def asks(ctx: Context) -> None:
        def effect() -> None:
            nonlocal count
            count += 1

        await ctx.step("effect", effect)
        await ctx.ask("sure", bool)

    plan = {"nodes": [{"id": "a", "handler": "asks"}]}
    async with AgentExecutor(path, [asks]) as executor:
        question = (await executor.run(plan, uid="r")).questions[0]
    async with AgentExecutor(path, [asks]) as executor:
        await executor.answer("r", question.id, True)
        await executor.resume("r")
    return f"happens {count} time(s)"


def handlers(mode: str, version: int) -> list[Handler]:
    """The handler of the graph; with the mode `crash` it ends the process in the middle."""

    @handler("work", version=version, effects="idempotent")
    async def work(name: str, seconds: float, before: str = "") -> str:
        await asyncio.sleep(seconds)
        if mode == "crash" and name == "A2":
            os._exit(1)
        with Path(sys.argv[1]).with_suffix(".ran").open("a") as ran:
            ran.write(f"{name} ")
        return f"{before}{name}"

    return [work]


async def graph(path: Path, mode: str, version: int = 1) -> str:
    """Two chains side by side, killed in the last node of the slow one, and resumed; with another `version` of their
    handler if its source changed meanwhile."""
    nodes: list[dict[str, Any]] = []
    for chain, length, seconds in (("A", 2, 2.0), ("B", 8, 0.01)):
        for at in range(1, length + 1):
            before = {"before": {"$ref": f"{chain}{at - 1}"}} if at > 1 else {}
            args = {"name": f"{chain}{at}", "seconds": 0.3 if at > 1 and chain == "A" else seconds, **before}
            nodes.append({"id": f"{chain}{at}", "handler": "work", "args": args})
    async with AgentExecutor(path, handlers(mode, version)) as executor:
        try:
            if mode == "crash":
                await executor.run({"nodes": nodes}, uid="r")
            result = await executor.resume("r")
        except UserError as error:
            return f"{(await executor.result('r')).status}: {error.message}"
        ran = path.with_suffix(".ran").read_text().split()
        twice = sorted({name for name in ran if ran.count(name) > 1})
        right = result.output == {"A2": "A1A2", "B8": "".join(f"B{at}" for at in range(1, 9))}
        output = "right" if right else str(result.output)
        return f"{result.status}, output {output}, done twice: {', '.join(twice) or 'nothing'}"


def main() -> None:
    path, trap = Path(sys.argv[1]), sys.argv[2]
    match trap:
        case "barrier":
            outcome = asyncio.run(barrier(path))
        case "effects":
            outcome = asyncio.run(effects(path))
        case "crash":
            outcome = asyncio.run(graph(path, "crash"))
        case _:
            command = [sys.executable, "-m", "benchmarks.plans.midstream_traps", str(path), "crash"]
            subprocess.run(command, check=False)
            outcome = asyncio.run(graph(path, "again", version=2 if trap == "edit" else 1))
    print(json.dumps({"outcome": outcome}))


if __name__ == "__main__":
    main()
