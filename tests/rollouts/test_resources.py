"""Resources of a flow are closed when its trajectory ends, fails or is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.errors import ConfigError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Status

events: list[str] = []


@asynccontextmanager
async def sandbox(name: str, fails: bool = False) -> AsyncIterator[str]:
    events.append(f"open {name}")
    try:
        yield name
    finally:
        await asyncio.sleep(0)  # closing awaits, even while the trajectory is being cancelled
        events.append(f"close {name}")
        if fails:
            raise OSError("the disk is gone")


@register("holder_for_resources")
class Holder(AgentFlowBase):
    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        await self.session.resources.enter_async_context(sandbox("one", fails=kwargs["ends"] == "badly"))
        await self.session.resources.enter_async_context(sandbox("two"))
        if kwargs["ends"] == "raises":
            raise ValueError("no")
        if kwargs["ends"] == "needs the user":
            raise ConfigError("mend this")
        if kwargs["ends"] in ("late", "cancelled"):
            await asyncio.sleep(60)
        self.answer = "done"
        return 0


@pytest.fixture
def worker(make_worker, by_role):
    events.clear()
    return make_worker(by_role(policy="fine"), "holder_for_resources", worker={"timeout_s": 3.0})


CLOSED = ["open one", "open two", "close two", "close one"]


@pytest.mark.parametrize(
    ("ends", "status"),
    [("well", Status.COMPLETED), ("raises", Status.FAILED), ("late", Status.TIMED_OUT)],
)
def test_resources_are_closed_in_reverse_order(worker, attempt, ends: str, status: Status) -> None:
    assert asyncio.run(worker.run(attempt(ends=ends))).status is status
    assert events == CLOSED


def test_resources_are_closed_when_the_rollout_stops(worker, attempt) -> None:
    with pytest.raises(ConfigError, match="mend this"):
        asyncio.run(worker.run(attempt(ends="needs the user")))
    assert events == CLOSED


def test_resources_are_closed_when_the_rollout_is_cancelled(worker, attempt) -> None:
    async def go() -> None:
        running = asyncio.create_task(worker.run(attempt(ends="cancelled")))
        while len(events) < 2:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(go())
    assert events == CLOSED


def test_a_resource_that_fails_to_close_is_logged(worker, attempt, caplog) -> None:
    made = asyncio.run(worker.run(attempt(ends="badly")))
    assert (made.status, made.answer) == (Status.COMPLETED, "done")
    assert events == CLOSED
    assert "trajectory 'u': a resource did not close: OSError: the disk is gone" in caplog.text
