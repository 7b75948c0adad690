"""A taskset of verifiers whose task has a tool."""

from __future__ import annotations

from collections.abc import Iterable

import verifiers.v1 as vf


class Adder(vf.Toolset[vf.ToolsetConfig, vf.State]):
    @vf.tool
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


class SumData(vf.TaskData):
    answer: int


class SumTaskConfig(vf.TaskConfig):
    tools: vf.ToolsetConfig = vf.ToolsetConfig()


class SumConfig(vf.TasksetConfig):
    task: SumTaskConfig = SumTaskConfig()


class SumTask(vf.Task[SumData, vf.State, SumTaskConfig]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float((trace.assistant_messages[-1].content or "").strip() == str(self.data.answer))

    @classmethod
    def toolsets(cls, config: SumTaskConfig) -> list[vf.Toolset]:
        return [Adder(config.tools)]


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    def load(self) -> Iterable[SumTask]:
        for number in range(40):
            yield SumTask(SumData(prompt=f"Add {number} and 7.", answer=number + 7), self.config.task)


__all__ = ["SumTaskset"]

if __name__ == "__main__":
    Adder.run()
