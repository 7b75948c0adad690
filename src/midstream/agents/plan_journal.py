"""Where a flow runs its plans: the database of an attempt that can be resumed, else a temporary one of this process."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from midstream.plans import AgentExecutor, Handler, OnWait, SchedulingPolicy
from midstream.plans.history import discard
from midstream.store import Database
from midstream.tools.shared import SharedResources

if TYPE_CHECKING:
    from midstream.agents.base import FlowSession


RUN = "plan:"
"""Begins the keys of actions that draw the uid of a plan's run."""
KEPT = "kept"
"""Key in the request of such an action: the plan stays in the journal when it has ended."""


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


class PlanJournal:
    """The plans of one attempt. Those of an attempt that can be resumed stay in its database until it ends."""

    def __init__(self, session: FlowSession, executor: AgentExecutor) -> None:
        self._session, self.executor = session, executor
        self._uids: list[str] = []

    @classmethod
    async def open(
        cls, session: FlowSession, handlers: Iterable[Handler], *, policy: SchedulingPolicy | None = None
    ) -> PlanJournal:
        """Return the journal of an attempt, with an executor; closed with the attempt."""
        return cls._closed_with(session, await open_executor(session, handlers, policy=policy))

    @classmethod
    async def temporary(
        cls,
        session: FlowSession,
        handlers: Iterable[Handler],
        *,
        policy: SchedulingPolicy | None = None,
        on_wait: OnWait | None = None,
    ) -> PlanJournal:
        """The same for a flow that makes its plan again when the attempt is resumed: nothing stays in the attempt's
        database."""
        session = replace(session, database=None, actions=None)
        return cls._closed_with(session, await open_executor(session, handlers, policy=policy, on_wait=on_wait))

    @classmethod
    def _closed_with(cls, session: FlowSession, executor: AgentExecutor) -> PlanJournal:
        journal = cls(session, executor)
        session.resources.push_async_callback(journal.close)
        return journal

    async def run_uid(self, name: str, *, kept: bool = False) -> str:
        """Return a new uid for the plan `name`; the same one when the attempt is resumed. A plan that is `kept` stays
        in the attempt's database when it has ended."""
        begins = self._session.recorder.trajectory_uid[:40].rstrip("-.")

        async def draw() -> str:
            return f"{begins}-{uuid.uuid4().hex[:12]}"

        if self._session.actions is not None:
            request = {"plan": name, **({KEPT: True} if kept else {})}
            return await self._session.actions.run(request, draw, key=f"{RUN}{name}", repeatable=True)
        self._uids.append(await draw())
        return self._uids[-1]

    async def close(self) -> None:
        """Delete the plans in a temporary database: nobody can go on with them."""
        for uid in self._uids:
            await self.executor.database.submit(lambda transaction, uid=uid: discard(transaction.connection, uid))
