"""What a durable node costs, beside LangGraph with its SQLite checkpointer and DBOS on SQLite, and five known traps.

    make bench-plans
    python -m benchmarks.plans --peers .venv-durable/bin/python [--traps]

The same chain everywhere: each node returns a text, and all texts stay available to the nodes after it. A row is the
median of the gaps between the starts of two nodes, the whole time by the number of nodes, and the size of the database
beside that of the texts. Ours runs with handlers that have effects: intent and outcome of every node are on disk.
`normal` survives `kill -9`, `full` a power cut too. Then 10,000 nodes, 200 plans at once, and the traps; with `--traps`
only those. `TESTS` names our tests for them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from midstream.plans import AgentExecutor, handler
from midstream.store import Database

HERE = Path(__file__).parent
TRAPS = {
    "barrier": "a node beside a slow one, whose own parent is done",
    "effects": "an effect before a question, after a restart and the answer",
    "storage": "database for 300 nodes of 2,000 characters",
    "graph": "a graph killed in the middle, outcomes in another order after the restart",
    "edit": "source that changed while the run was down",
}
TESTS = {
    "barrier": "test_execution.py",
    "effects": "test_waiting.py",
    "storage": "test_history.py",
    "graph": "test_execution.py",
    "edit": "test_handler_versions.py",
}
"""Under `tests/plans`."""
CHAIN = {"nodes": 300, "size": 2000}
"""Of the trap `storage`."""
STARTS: list[float] = []


@handler("write", effects="idempotent")
async def write(number: int, size: int, before: str = "") -> str:
    STARTS.append(time.perf_counter())
    return f"{number:08d}".ljust(size, "x")  # no two alike: equal payloads are stored once


def chain(nodes: int, size: int) -> dict[str, Any]:
    """A plan in which each node follows the one before."""
    made: list[dict[str, Any]] = []
    for at in range(nodes):
        before = {"before": {"$ref": f"n{at - 1}"}} if at else {}
        made.append({"id": f"n{at}", "handler": "write", "args": {"number": at, "size": size, **before}})
    return {"nodes": made, "output": {"$ref": f"n{nodes - 1}"}}


def size_of(path: Path) -> int:
    """Bytes of a database, its log included."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def ours(path: Path, durability: Literal["full", "normal"], nodes: int, size: int) -> dict[str, Any]:
    with Database(path, durability) as database:
        async with AgentExecutor(database, [write]) as executor:
            uid = await executor.start(chain(nodes, size))
            STARTS.clear()
            began, cpu = time.perf_counter(), time.process_time()
            await executor.resume(uid)
            took, cpu = time.perf_counter() - began, time.process_time() - cpu
    gaps = [after - before for before, after in itertools.pairwise(STARTS)]
    row = {"median_ms": statistics.median(gaps) * 1000, "mean_ms": took / nodes * 1000, "cpu_ms": cpu / nodes * 1000}
    return {**row, "bytes": size_of(path), "payload": nodes * size}


async def many(path: Path, plans: int, nodes: int) -> float:
    """Milliseconds a node when many plans run at once."""
    async with AgentExecutor(path, [write]) as executor:
        began = time.perf_counter()
        await asyncio.gather(*(executor.run(chain(nodes, 10)) for _ in range(plans)))
        return (time.perf_counter() - began) * 1000 / (plans * nodes)


def peer(python: str, script: str, *arguments: object) -> Any:
    """What a peer's script printed; its error where it failed."""
    return printed([python, str(HERE / script), *map(str, arguments)])


def printed(command: list[str]) -> Any:
    """The JSON that a program printed last; its error where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and done.returncode == 0 else {"error": done.stderr.strip()[-300:]}


def outcome(system: str, trap: str, folder: Path, peers: str | None) -> str:
    """What one system does in one trap."""
    path = folder / f"{system}-{trap}.db"
    if trap == "storage":
        nodes, size = CHAIN["nodes"], CHAIN["size"]
        if system == "midstream":
            row = asyncio.run(ours(path, "normal", nodes, size))
        else:
            row = peer(str(peers), f"{system}_chain.py", path, nodes, size)
        return row.get("error") or f"{row['bytes'] / 1e6:.1f} MB, {row['bytes'] / row['payload']:.1f} times its texts"
    if system == "midstream":
        found = printed([sys.executable, "-m", "benchmarks.plans.midstream_traps", str(path), trap])
    else:
        found = peer(str(peers), f"{system}_traps.py", path, trap)
    return found.get("outcome") or found["error"]


def traps(folder: Path, peers: str | None) -> None:
    """Print what each system does in each trap."""
    for trap, what in TRAPS.items():
        print(f"  {what} (tests/plans/{TESTS[trap]})")
        for system in ("midstream", "langgraph", "dbos") if peers else ("midstream",):
            print(f"    {system:<10} {outcome(system, trap, folder, peers)}")


def show(name: str, row: dict[str, Any]) -> None:
    if "error" in row:
        print(f"  {name:<34} failed: {row['error'].splitlines()[-1]}")
        return
    cpu = f"{row['cpu_ms']:7.2f}" if "cpu_ms" in row else "      -"
    grown = f"{row['bytes'] / 1e6:8.2f} MB for {row['payload'] / 1e6:.2f} MB of texts"
    print(f"  {name:<34} {row['median_ms']:7.2f} {row['mean_ms']:7.2f} {cpu}  {grown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with langgraph-checkpoint-sqlite and dbos")
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--large", type=int, default=10_000)
    parser.add_argument("--traps", action="store_true", help="only the traps")
    arguments = parser.parse_args()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{names[0].partition(':')[2].strip()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    print(f"Python {platform.python_version()}; ms a node: median gap, mean, CPU; {arguments.nodes} nodes in a chain")
    if not arguments.traps:
        costs(arguments)
    print("traps")
    with tempfile.TemporaryDirectory() as name:
        traps(Path(name), arguments.peers)


def costs(arguments: argparse.Namespace) -> None:
    """Print what a node costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (10, 2000):
            print(f"{size} characters a node")
            for durability in ("normal", "full"):
                path = folder / f"{durability}{size}.db"
                show(f"midstream, {durability}", asyncio.run(ours(path, durability, arguments.nodes, size)))
            if arguments.peers:
                for script in ("langgraph_chain.py", "dbos_chain.py"):
                    path = folder / f"{script}{size}.db"
                    show(script.removesuffix("_chain.py"), peer(arguments.peers, script, path, arguments.nodes, size))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row = asyncio.run(ours(folder / "large.db", "normal", arguments.large, 2000))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        show(f"midstream, {arguments.large:,} nodes", row)
        print(f"  its memory grew by {grown:.0f} MB")
        print(f"  200 plans of 20 nodes at once: {asyncio.run(many(folder / 'many.db', 200, 20)):.2f} ms a node")


if __name__ == "__main__":
    main()
