"""Where a flow runs its plans: the database of an attempt that can be resumed, else a temporary one of this process."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midstream.plans import AgentExecutor, Handler, OnWait, SchedulingPolicy
from midstream.store import Database
from midstream.tools.shared import SharedResources

if TYPE_CHECKING:
    from midstream.agents.base import FlowSession


@dataclass(frozen=True, slots=True)
class _Temporary:
    folder: tempfile.TemporaryDirectory[str]
    database: Database


async def _opened() -> _Temporary:
    folder = tempfile.TemporaryDirectory(prefix="midstream-plans-")
    return _Temporary(folder, await asyncio.to_thread(Database, Path(folder.name) / "plans.sqlite", "normal"))


async def _close(temporary: _Temporary) -> None:
    await asyncio.to_thread(temporary.database.close)
    temporary.folder.cleanup()


_temporary: SharedResources[_Temporary] = SharedResources(_close)


async def open_executor(
    session: FlowSession,
    handlers: Iterable[Handler],
    *,
    policy: SchedulingPolicy | None = None,
    on_wait: OnWait | None = None,
    journal: str | None = None,
) -> AgentExecutor:
    """Return an executor for the plans of one attempt, closed with it. `journal` is the path of a database in which the
    runs are kept; `policy` and `on_wait` are those of the executor."""
    database = session.database if journal is None else await asyncio.to_thread(Database, journal, "normal")
    if journal is not None:
        assert database is not None
        session.resources.push_async_callback(asyncio.to_thread, database.close)
    elif database is None:
        database = (await _temporary.acquire("plans", _opened)).database
        session.resources.push_async_callback(_temporary.release, "plans")
    executor = AgentExecutor(database, handlers, policy=policy, on_wait=on_wait)
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
