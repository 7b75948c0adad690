"""What a gateway of its own runs on."""

from __future__ import annotations

import asyncio

from midstream.gateway.server import run


def test_a_gateway_that_is_a_program_runs_on_uvloop() -> None:
    found: list[str] = []

    async def look() -> None:
        found.append(type(asyncio.get_running_loop()).__module__)

    run(look())
    assert found == ["uvloop"]
