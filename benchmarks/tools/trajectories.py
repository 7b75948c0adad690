"""1,000 trajectories at once in one process, each with three calls of a tool that takes 200 ms.

    python -m benchmarks.tools.trajectories

Whole trajectories: a flow asks a model and calls the tool in turn, and every token is recorded. The model is canned
replies that take 100 ms each, so one trajectory alone takes a second. Prints the wall time of all of them over that of
one, and the CPU time of each. The tokenizer is that of the model `tiny`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tools.calls import TURNS
from benchmarks.tools.sandbox import processor

import midstream as ms
from midstream.agents.config import FlowConfig
from midstream.core.types import Task
from midstream.engines import tiny
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import no_progress_bars
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowManager, AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

REPLY_S = 0.1


class Turns(ms.AgentFlowBase):
    """Asks the model and calls the tool, three times, then asks for the answer."""

    async def run(self, sampling_params: ms.SamplingParams, **kwargs: Any) -> int:
        messages: list[Any] = [{"role": "user", "content": self.task.question}]
        for _ in range(TURNS):
            step = await self.chat(messages)
            call = await self.call_tool(self.session.tools.tools[0].name, {"text": step.text})
            messages += [{"role": "assistant", "content": step.text}, {"role": "user", "content": call.result}]
        self.answer = (await self.chat(messages)).text
        return len(self.steps)


async def measure(worker: AgentFlowWorker, count: int) -> tuple[float, float]:
    """Wall and CPU seconds of `count` trajectories at once."""
    attempts = [
        Attempt(task=Task(id=str(n), prompt=f"What is {n}?"), uid=f"u{n}", prompt_uid=f"p{n}", seed=n)
        for n in range(count)
    ]
    started, cpu = time.perf_counter(), time.process_time()
    done = await AgentFlowManager(worker, concurrency=count).run(attempts)
    assert all(one.answer for one in done), {one.error for one in done}
    return time.perf_counter() - started, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load average {load:.1f}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder, no_progress_bars():
        tiny.build(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    engine = RoleEngine(ScriptedEngine(tokenizer, "I will look that up.", latency_s=REPLY_S), tokenizer, True)
    for name in ("slow_async", "slow_sync"):
        flow = FlowConfig(name=f"{__name__}:Turns", tools=(f"benchmarks.tools.calls:{name}",))
        worker = AgentFlowWorker(flow, {"policy": engine}, sampling=SamplingConfig())
        asyncio.run(measure(worker, 1))
        for _ in range(arguments.repeats):
            alone, _ = asyncio.run(measure(worker, 1))
            took, cpu = asyncio.run(measure(worker, arguments.count))
            ratio, cpu_ms = f"{took / alone:.2f} x the {alone:.2f} s of one", cpu / arguments.count * 1000
            print(
                f"{arguments.count} trajectories at once, {name:<11} {took:6.2f} s, {ratio}; {cpu_ms:.2f} ms CPU each"
            )


if __name__ == "__main__":
    main()
