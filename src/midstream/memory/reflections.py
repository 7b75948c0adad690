"""Reflections: what went wrong and what to do instead, written down once and read before the next attempt."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.memory.long_term import LongTermMemory

KIND = "reflection"


@dataclass(frozen=True, slots=True)
class Reflections:
    """An error log in long-term memory. Lessons about similar situations are found by `lessons`."""

    memory: LongTermMemory

    async def add(self, situation: str, error: str, lesson: str = "", *, source: str = "") -> int:
        """Write down that `error` happened in `situation`, and the `lesson`, if there is one."""
        parts = [situation, f"went wrong: {error}", f"next time: {lesson}" if lesson else ""]
        text = "; ".join(part for part in parts if part)
        return await self.memory.add(text, kind=KIND, source=source, importance=0.7)

    async def lessons(self, situation: str, k: int = 3) -> list[str]:
        """The `k` reflections that fit `situation` best."""
        return [found.text for found in await self.memory.retrieve(situation, k, kind=KIND)]
