"""Reflections: errors and their lessons, recorded after an attempt and read before the next one."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.memory.long_term import LongTermMemory

KIND = "reflection"


@dataclass(frozen=True, slots=True)
class Reflections:
    """An error log in long-term memory. `lessons` finds entries about similar situations."""

    memory: LongTermMemory

    async def add(self, situation: str, error: str, lesson: str = "", *, source: str = "") -> int:
        """Record that `error` happened in `situation`, with the `lesson`, if there is one."""
        parts = [situation, f"went wrong: {error}", f"next time: {lesson}" if lesson else ""]
        text = "; ".join(part for part in parts if part)
        return await self.memory.add(text, kind=KIND, source=source, importance=0.7)

    async def lessons(self, situation: str, k: int = 3) -> list[str]:
        """Return the `k` reflections that match `situation` best."""
        return [found.text for found in await self.memory.retrieve(situation, k, kind=KIND)]
