"""Looking up what was recorded: one trajectory, or all that filters let through, a few in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import sqlalchemy as sa

from midstream.core.errors import RunError
from midstream.core.types import Status, Trajectory
from midstream.record import reading, schema
from midstream.record.access import Access
from midstream.record.filters import Filters, conditions
from midstream.record.reading import Recorded

PAGE = 64
"""Trajectories a streaming read holds at once."""


class Lookup(Access):
    """What is read back."""

    def trajectory(self, uid: str) -> Trajectory:
        """The trajectory `uid` with its steps; `RunError` when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        if not found:
            raise RunError(
                f"no trajectory '{uid}' in '{self.where}'", "'midstream show RUN' lists those that are there"
            )
        return found[0].trajectory

    def trajectories(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Trajectory]:
        """Trajectories in the order they were begun, a few in memory at a time.

        Holds no lock between pages, so what is written meanwhile may be seen or not.
        """
        for page in self._pages(conditions(filters), limit, newest_first):
            for recorded in page:
                yield recorded.trajectory

    def find(self, uid: str) -> Recorded | None:
        """The trajectory `uid` with what is kept beside it; None when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        return found[0] if found else None

    def recorded(self, **filters: Unpack[Filters]) -> Iterator[Recorded]:
        """As `trajectories`, with what is kept beside each."""
        for page in self._pages(conditions(filters)):
            yield from page

    def uids_starting(self, start: str, limit: int) -> list[str]:
        """At most `limit` uids that begin with `start`, in alphabetical order; `start` itself is the first."""
        column = schema.trajectories.c.uid
        query = sa.select(column).where(sa.func.substr(column, 1, len(start)) == start).order_by(column).limit(limit)
        return list(self.read(lambda connection: connection.scalars(query)))

    def open_uids(self) -> list[str]:
        """The running trajectories that this server holds (`Servers.join`); without one, all that have a `session`."""
        table = schema.trajectories.c
        mine = table.session.is_not(None) if self.server is None else table.server == self.server
        wanted = (table.status == Status.RUNNING, mine)
        return self.read(lambda connection: list(connection.scalars(sa.select(table.uid).where(*wanted))))

    def count(self, **filters: Unpack[Filters]) -> int:
        """How many trajectories there are."""
        query = sa.select(sa.func.count()).select_from(schema.trajectories).where(*conditions(filters))
        return self.read(lambda connection: int(connection.execute(query).scalar_one()))

    def channels(self) -> list[str]:
        """The channels that something was recorded in, in alphabetical order."""
        column = schema.trajectories.c.channel
        return list(self.read(lambda connection: connection.scalars(sa.select(column).distinct().order_by(column))))

    def groups(self, channel: str, train_step: int | None = None) -> dict[str, list[str]]:
        """The uids of the trajectories that share a prompt, by `prompt_uid`, in the order they were begun."""
        table = schema.trajectories.c
        wanted = conditions({"channel": channel, "train_step": train_step})
        query = sa.select(table.prompt_uid, table.uid).where(*wanted).order_by(table.id)
        found: dict[str, list[str]] = {}
        for prompt_uid, uid in self.read(lambda connection: connection.execute(query).all()):
            found.setdefault(prompt_uid, []).append(uid)
        return found

    def _pages(
        self, wanted: Sequence[sa.ColumnElement[bool]], limit: int | None = None, newest_first: bool = False
    ) -> Iterator[list[Recorded]]:
        order = schema.trajectories.c.id
        query = schema.trajectories.select().where(*wanted).order_by(order.desc() if newest_first else order)
        left, last = limit, None
        while left is None or left > 0:
            after = () if last is None else ((order < last) if newest_first else (order > last),)
            page = self._page(query.where(*after).limit(PAGE if left is None else min(PAGE, left)))
            if not page:
                return
            last = page[-1].id
            left = None if left is None else left - len(page)
            yield page

    def _page(self, query: sa.Select[Any]) -> list[Recorded]:
        return self.read(lambda connection: reading.read(connection, query))
