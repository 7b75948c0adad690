"""Where a flow runs its plans: the database of an attempt that can be resumed, else a temporary one of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

from midstream.agents.scheduling.journal import open_journal
from midstream.plans import AgentExecutor, Handler, SchedulingPolicy

if TYPE_CHECKING:
    from midstream.agents.base import FlowSession


async def open_executor(
    session: FlowSession, handlers: Iterable[Handler], *, policy: SchedulingPolicy | None = None
) -> AgentExecutor:
    """Return an executor for the plans of one attempt, closed with it."""
    database = session.database or await asyncio.to_thread(open_journal, None)
    executor = AgentExecutor(database, handlers, policy=policy)
    session.resources.push_async_callback(executor.close)
    return executor


async def run_uid(session: FlowSession, name: str) -> str:
    """Return a new uid for the plan `name` of this attempt; the same one when the attempt is resumed."""
    begins = session.recorder.trajectory_uid[:40].rstrip("-.")

    async def draw() -> str:
        return f"{begins}-{uuid.uuid4().hex[:12]}"

    if session.actions is None:
        return await draw()
    return await session.actions.run({"plan": name}, draw, key=f"plan:{name}", repeatable=True)
