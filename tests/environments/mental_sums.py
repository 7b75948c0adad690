"""A taskset of verifiers, as its authors would write one."""

from __future__ import annotations

import re
from collections.abc import Iterable

import verifiers.v1 as vf


class SumData(vf.TaskData):
    answer: int


class SumConfig(vf.TasksetConfig):
    count: int = 60


class SumTask(vf.Task[SumData, vf.State]):
    @vf.reward(weight=1.0)
    async def right(self, trace: vf.Trace) -> float:
        numbers = re.findall(r"\d+", trace.assistant_messages[-1].content or "")
        return float(bool(numbers) and int(numbers[-1]) == self.data.answer)

    @vf.reward(weight=0.1)
    async def short(self, trace: vf.Trace) -> float:
        return float(len(trace.assistant_messages[-1].content or "") < 20)

    @vf.metric
    async def replies(self, trace: vf.Trace) -> float:
        return float(len(trace.assistant_messages))


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    def load(self) -> Iterable[SumTask]:
        for number in range(self.config.count):
            prompt = f"What is {number} + 7? Reply with the number."
            yield SumTask(SumData(prompt=prompt, answer=number + 7), self.config.task)


__all__ = ["SumTaskset"]
