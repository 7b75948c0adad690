"""Server heartbeats: liveness of servers that share a database, and adoption of what a dead one held.

A server joins under a name and beats every few seconds, in one write for everything it holds. One without a beat for
`DEAD_AFTER_S` counts as dead: the next server to beat adopts what it held. A server that joins with an existing name
replaces that one immediately: this is how a server continues after a restart. A server wrongly considered dead cannot
write to what it lost, and detects this at its next beat.

Process clocks should agree to the second.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Column, Float, MetaData, String, Table

from midstream.core import clock
from midstream.core.errors import NameTaken
from midstream.store.database import Database
from midstream.store.schema import Schema

BEAT_S = 3.0
"""How often a server should beat."""
DEAD_AFTER_S = 15.0

table = Table(
    "servers",
    MetaData(),
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("alive_at", Float, nullable=False),
)
_servers = table.c


def _unregistered(connection: sa.Connection, tables: Sequence[str]) -> int | None:
    """Return the version of tables created before each package had its own version."""
    if table.name not in tables or "schema_version" not in tables:
        return None
    columns = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    return 1 if columns == set(table.columns.keys()) else None


SCHEMA = Schema("servers", table.metadata, unregistered=_unregistered)

Adopt = Callable[[sa.Connection, str], list[str]]
"""Assigns everything that no living server holds to the server with this id; returns what it assigned. Living servers
are those in `table`."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Result of a beat: what this server adopted, and whether it had been considered dead, so that others may hold what
    it held."""

    adopted: list[str]
    lost: bool = False


class Servers:
    """This process as one of the servers of a database."""

    def __init__(self, database: Database, adopt: Adopt) -> None:
        self._database, self._adopt = database, adopt
        database.require(SCHEMA)
        self.own: str | None = None
        """Id of this server; None until it joins."""
        self._name = ""

    def join(self, name: str) -> Beat:
        """Become a server: hold what this process begins, what a server of this `name` held, and what is unassigned."""
        own, self._name = uuid.uuid4().hex, name

        def join(connection: sa.Connection) -> Beat:
            connection.execute(table.delete().where(_servers.name == name))
            connection.execute(table.insert(), [{"id": own, "name": name, "alive_at": clock.time()}])
            return Beat(self._adopt_from_dead(connection, own))

        joined = self._database.change(join)
        self.own = own
        return joined

    def beat(self) -> Beat:
        """Stay alive, and adopt what dead servers held. Raises `NameTaken` when another server joined as this one."""
        own, name = self.own, self._name
        assert own is not None

        def beat(connection: sa.Connection) -> Beat:
            now = clock.time()
            lives = connection.execute(table.update().where(_servers.id == own).values(alive_at=now)).rowcount
            if not lives:
                rival = sa.select(_servers.id).where(_servers.name == name, _servers.alive_at >= now - DEAD_AFTER_S)
                if connection.execute(rival).first() is not None:
                    raise NameTaken(
                        f"another server joined this store as '{name}' and took over what this one held",
                        "give each server that shares a store a name of its own",
                    )
                connection.execute(table.insert(), [{"id": own, "name": name, "alive_at": now}])
            return Beat(self._adopt_from_dead(connection, own), lost=not lives)

        return self._database.change(beat)

    def leave(self) -> None:
        """Leave: the next server to beat adopts what this one held."""
        own = self.own
        self._database.change(lambda connection: connection.execute(table.delete().where(_servers.id == own)))

    def name_of(self, server: str) -> str | None:
        """Return the name of another server; None if it has left."""
        query = sa.select(_servers.name).where(_servers.id == server)
        return self._database.read(lambda connection: connection.scalar(query))

    def _adopt_from_dead(self, connection: sa.Connection, own: str) -> list[str]:
        connection.execute(table.delete().where(_servers.alive_at < clock.time() - DEAD_AFTER_S))
        return self._adopt(connection, own)
