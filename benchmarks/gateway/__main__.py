"""Compares the gateway with LiteLLM's proxy: requests per second, latency, and memory of open streams.

    make bench-gateway                   # or: python benchmarks/gateway --litellm .venv-litellm/bin/litellm

Four sides take turns in each setting: the mock alone, LiteLLM's proxy in front of it, and the gateway over a scripted
engine that says what the mock says, writing every call to disk (durability `full`, then `normal`). All servers run for
the whole time, one process each; the load comes from another process. Afterwards the gateway's store must hold every
call that was answered. Writes `gateway.json`, `.md` and `.png` into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conversation import MODEL
from report import draw, table
from servers import Server, gateway, litellm, mock

from midstream.record.store import Store

HERE = Path(__file__).parent
SIDES = ("mock", "litellm", "full", "normal")
LATENCIES_S = (0.0, 0.1, 1.0)
"""Latency of the engine: none, short, and that of a model."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Agents at once, model calls in a conversation, and how long the engine takes."""

    clients: int
    turns: int
    latency_s: float


SETTINGS = [Setting(c, t, s) for t in (1, 8) for c, s in ((1, 0.0), *((64, s) for s in LATENCIES_S))]


class Sides:
    """All servers of a run."""

    def __init__(self, stack: ExitStack, program: Path, folder: Path) -> None:
        self._folder = folder
        self.answered = {"full": 0, "normal": 0}
        self._servers: dict[tuple[str, float], Server] = {}
        for latency_s in LATENCIES_S:
            self._servers["mock", latency_s] = stack.enter_context(mock(latency_s, folder / "mock.log"))
            for durability in ("full", "normal"):
                asked = {"latency_s": latency_s, "durability": durability, "store": self._store(durability, latency_s)}
                started = gateway(asked, folder / f"gateway-{durability}.log")
                self._servers[durability, latency_s] = stack.enter_context(started)
        upstreams = {self._model("litellm", s): self._servers["mock", s].url for s in LATENCIES_S}
        proxy = stack.enter_context(litellm(program, upstreams, folder))
        self._servers |= {("litellm", latency_s): proxy for latency_s in LATENCIES_S}

    def measure(self, side: str, setting: Setting, warmup_s: float, seconds: float) -> dict[str, Any]:
        """One side in one setting."""
        server = self._servers[side, setting.latency_s]
        ours = side in self.answered
        model = self._model(side, setting.latency_s)
        asked = {**asdict(setting), "url": server.url, "key": server.key, "model": model}
        asked["trajectories"] = ours
        began = server.cpu_s()
        found = json.loads(_load({**asked, "warmup_s": warmup_s, "seconds": seconds}))
        found["cpu_ms_a_call"] = 1e3 * (server.cpu_s() - began) / found["calls"]
        if ours:
            self.answered[side] += found["calls"]
        return {"side": side, **asdict(setting), **found}

    def check(self) -> None:
        """Every call that was answered is on disk, and went on from the tokens of the one before it."""
        for side, answered in self.answered.items():
            kept = broken = 0
            for latency_s in LATENCIES_S:
                with Store(self._store(side, latency_s)) as store:
                    for trajectory in store.trajectories.iterate():
                        kept += len(trajectory.steps)
                        broken += sum(step.parent != (step.step_index or 0) - 1 for step in trajectory.steps[1:])
            if kept != answered or broken:
                raise SystemExit(f"{side}: {answered} calls answered, {kept} recorded, {broken} do not extend the last")

    def _store(self, durability: str, latency_s: float) -> str:
        return str(self._folder / f"{durability}-{round(1e3 * latency_s)}ms.sqlite")

    def _model(self, side: str, latency_s: float) -> str:
        return f"after-{round(1e3 * latency_s)}-ms" if side == "litellm" else MODEL


def open_streams(count: int, folder: Path) -> dict[str, Any]:
    """The memory of a gateway before and while `count` streams are open and under way."""
    slow = {"latency_s": 0.0, "tokens_per_s": 0.5, "limits": {"concurrency": count}}
    with gateway({**slow, "durability": "full", "store": str(folder / "streams.sqlite")}, folder / "s.log") as server:
        before = server.memory_mb()
        asked = json.dumps({"streams": True, "url": server.url, "clients": count})
        command = [sys.executable, str(HERE / "load.py"), asked]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
            assert load.stdout is not None
            opened = json.loads(load.stdout.readline())["streams"]
            during = server.memory_mb()
            load.communicate("\n", timeout=60)
    return {"streams": opened, "before_mb": before, "during_mb": during}


def _load(asked: dict[str, Any]) -> str:
    done = subprocess.run([sys.executable, str(HERE / "load.py"), json.dumps(asked)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the load failed on {asked}")
    return done.stdout


def processor() -> str:
    """Return the name of the processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else "unknown processor"


def versions(program: Path) -> dict[str, str]:
    ours = {name: version(name) for name in ("midstream", "uvicorn", "uvloop", "starlette")}
    asked = "from importlib.metadata import version; print(version('litellm'))"
    python = program.parent / "python"
    return ours | {"litellm": subprocess.check_output([str(python), "-c", asked], text=True).strip()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--litellm", type=Path, default=Path(".venv-litellm/bin/litellm"), help="LiteLLM's program")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side in each setting")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn, after the warm-up")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds that do not count")
    parser.add_argument("--streams", type=int, default=2000, help="streams open at once, for the memory")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-gateway"))
    parser.add_argument("--read", action="store_true", help="show what is in --out and measure nothing")
    arguments = parser.parse_args()
    out: Path = arguments.out
    if not arguments.read:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        found: dict[str, Any] = {
            "processor": processor(),
            "cores": os.cpu_count(),
            "versions": versions(arguments.litellm),
            "seconds": arguments.seconds,
            "load_average": [os.getloadavg()[0]],
            "results": [],
        }
        with ExitStack() as stack:
            sides = Sides(stack, arguments.litellm, out)
            for setting in SETTINGS:
                for repeat in range(arguments.repeats):
                    for side in SIDES:
                        result = sides.measure(side, setting, arguments.warmup, arguments.seconds)
                        found["results"].append({"repeat": repeat, **result})
                        print(f"{setting} {side}: {result['calls_per_s']:.0f} calls/s", flush=True)
        sides.check()
        found["memory"] = open_streams(arguments.streams, out)
        found["load_average"].append(os.getloadavg()[0])
        (out / "gateway.json").write_text(json.dumps(found, indent=1))
    measured = json.loads((out / "gateway.json").read_text())
    text = table(measured)
    (out / "gateway.md").write_text(text + "\n")
    draw(measured, out / "gateway.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
