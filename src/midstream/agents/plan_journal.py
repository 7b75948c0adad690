"""Where a flow runs its plans: the database of an attempt that can be resumed, else a temporary one of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

from midstream.agents.scheduling.journal import open_journal
from midstream.plans import AgentExecutor, Handler
from midstream.plans.history import discard

if TYPE_CHECKING:
    from midstream.agents.base import FlowSession

RUN = "plan:"
"""Begins the keys of actions that draw the uid of a plan's run."""


class PlanJournal:
    """The plans of one attempt. Those of an attempt that can be resumed stay in its database until it ends."""

    def __init__(self, session: FlowSession, executor: AgentExecutor) -> None:
        self._session, self.executor = session, executor
        self._uids: list[str] = []

    @classmethod
    async def open(cls, session: FlowSession, handlers: Iterable[Handler]) -> PlanJournal:
        """Return the journal of an attempt, with an executor; closed with the attempt."""
        database = session.database or await asyncio.to_thread(open_journal, None)
        journal = cls(session, AgentExecutor(database, handlers))
        session.resources.push_async_callback(journal.close)
        return journal

    async def run_uid(self, name: str) -> str:
        """Return a new uid for the plan `name`; the same one when the attempt is resumed."""
        begins = self._session.recorder.trajectory_uid[:40].rstrip("-.")

        async def draw() -> str:
            return f"{begins}-{uuid.uuid4().hex[:12]}"

        if self._session.actions is not None:
            return await self._session.actions.run({"plan": name}, draw, key=f"{RUN}{name}", repeatable=True)
        self._uids.append(await draw())
        return self._uids[-1]

    async def close(self) -> None:
        """Close the executor. Nobody can go on with plans in a temporary database, so they are deleted."""
        await self.executor.close()
        for uid in self._uids:
            await self.executor.database.submit(lambda transaction, uid=uid: discard(transaction.connection, uid))
