"""A sandbox that runs nothing: it answers by a function of the code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from midstream.tools.sandbox import Limits, Result


class FakeSandbox:
    name = "fake"

    def __init__(self, answer: Callable[[str], Result]) -> None:
        self._answer = answer
        self.ran: list[str] = []

    async def run(self, code: str, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Result:
        self.ran.append(code)
        return self._answer(code)

    def session(self, limits: Limits | None = None) -> Any:
        raise NotImplementedError

    async def close(self) -> None: ...
