"""Servers that share a store: each running trajectory that has a `session` is held by one of them.

A server joins under a name, and says every few seconds, in one write for all it holds, that it lives. One that was not
heard of for `DEAD_AFTER_S` counts as dead: the first to say it lives takes over what the dead one held. One that joins
under the name of another takes that one's place at once: this is how a server goes on after its restart. Whoever was
taken for dead and is not cannot write to what it lost (`HeldElsewhere`), and learns of it when it next says it lives.

Clocks are those of the processes, which should agree to the second.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import sqlalchemy as sa

from midstream.core import clock
from midstream.core.errors import NameTaken
from midstream.core.types import Status
from midstream.record import schema
from midstream.record.access import Access

BEAT_S = 3.0
"""How often a server should say that it lives."""
DEAD_AFTER_S = 15.0

_servers = schema.servers.c
_held = schema.trajectories.c


@dataclass(frozen=True, slots=True)
class Beat:
    """What a server learns when it says that it lives: trajectories that are its own from now on, and whether it was
    taken for dead: then others may hold what it held."""

    adopted: list[str]
    lost: bool = False


class Servers(Access):
    """How a server holds trajectories."""

    def join(self, name: str) -> Beat:
        """Hold trajectories from now on: those that this process begins with a `session`, those of a server that had
        this `name`, and those that nobody holds."""
        own, self._name = uuid.uuid4().hex, name

        def join(connection: sa.Connection) -> Beat:
            connection.execute(schema.servers.delete().where(_servers.name == name))
            connection.execute(schema.servers.insert(), [{"id": own, "name": name, "alive_at": clock.time()}])
            return Beat(_adopt(connection, own))

        joined = self._change(join)
        self.server = own
        return joined

    def beat(self) -> Beat:
        """Say that this server lives, and take over what those held that do not. Raises `NameTaken` when another one
        has joined under its name."""
        own, name = self.server, self._name
        assert own is not None

        def beat(connection: sa.Connection) -> Beat:
            now = clock.time()
            lives = connection.execute(schema.servers.update().where(_servers.id == own).values(alive_at=now)).rowcount
            if not lives:
                rival = sa.select(_servers.id).where(_servers.name == name, _servers.alive_at >= now - DEAD_AFTER_S)
                if connection.execute(rival).first() is not None:
                    raise NameTaken(
                        f"another server at this store has joined as '{name}', and taken over what this one held",
                        "give each server that shares a store a name of its own",
                    )
                connection.execute(schema.servers.insert(), [{"id": own, "name": name, "alive_at": now}])
            return Beat(_adopt(connection, own), lost=not lives)

        return self._change(beat)

    def leave(self) -> None:
        """This server ends: whoever comes next takes over what it held, at once."""
        own = self.server
        self._change(lambda connection: connection.execute(schema.servers.delete().where(_servers.id == own)))

    def server_name(self, server: str) -> str | None:
        """The name of another server; None when it has gone."""
        query = sa.select(_servers.name).where(_servers.id == server)
        return self.read(lambda connection: connection.scalar(query))


def _adopt(connection: sa.Connection, own: str) -> list[str]:
    """Take over what no living server holds."""
    connection.execute(schema.servers.delete().where(_servers.alive_at < clock.time() - DEAD_AFTER_S))
    gone = sa.or_(_held.server.is_(None), _held.server.not_in(sa.select(_servers.id)))
    orphans = (_held.status == Status.RUNNING, _held.session.is_not(None), gone)
    taken = schema.trajectories.update().where(*orphans).values(server=own).returning(_held.uid)
    return list(connection.scalars(taken))
