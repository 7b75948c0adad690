"""Opens every available backend for a test, and closes it afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from midstream.tools.sandbox import Limits, Sandbox, SandboxConfig, backends, open_sandbox

T = TypeVar("T")
BACKENDS = ("bubblewrap", "interpreter")
Use = Callable[[Callable[[Sandbox], Awaitable[Any]]], Any]
LIMITS = Limits(wall_s=60, cpu_s=2, memory_mb=200, processes=24, files=200, file_mb=8, output_kb=64)
"""Small, so that every attack ends quickly."""


def use(backend: str, work: Callable[[Sandbox], Awaitable[T]], limits: Limits = LIMITS, warm: int = 1) -> T:
    """Run `work` with its own sandbox and return its result; skips the test if the backend is unavailable."""

    async def with_sandbox() -> T:
        found = {one.name: one for one in await backends()}[backend]
        if not found.available:
            pytest.skip(f"{backend}: {found.reason}")
        sandbox = await open_sandbox(SandboxConfig.model_validate({"backend": backend, "limits": limits, "warm": warm}))
        try:
            return await work(sandbox)
        finally:
            await sandbox.close()

    return asyncio.run(with_sandbox())
