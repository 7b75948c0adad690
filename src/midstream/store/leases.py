"""Leases: named resources that one owner holds for a time, with fencing tokens.

A holder that resumes after its lease expired cannot do harm: every new lease of a resource has a higher `fence`, and a
write with an older one is refused (Kleppmann 2016, "How to do distributed locking"). Process clocks should agree to the
second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, MetaData, String, Table

from midstream.core import clock
from midstream.core.errors import LeaseLost
from midstream.store.database import Database
from midstream.store.engine import INSERT
from midstream.store.prepared import fetch
from midstream.store.schema import Schema

_table = Table(
    "leases",
    MetaData(),
    Column("resource", String, primary_key=True),
    Column("owner", String),
    Column("fence", Integer, nullable=False),
    Column("until", Float, nullable=False),
)
SCHEMA = Schema("leases", _table.metadata)
_HOLDER = (
    sa.select(_table.c.fence, _table.c.owner)
    .where(_table.c.resource.in_(sa.bindparam("resource", expanding=True)))
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A resource that `owner` holds until `until` (seconds since 1970). `fence` grows with every new holder."""

    resource: str
    owner: str
    fence: int
    until: float


class Leases:
    """Leases in a database. Resource names are shared by all packages: begin them with the package's name."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.require(SCHEMA)

    def acquire(
        self, resource: str, owner: str, lease_s: float, is_dead: Callable[[str], bool] = lambda owner: False
    ) -> Lease | None:
        """Hold `resource` for `lease_s` seconds; None when another owner holds it. Its own owner renews it. The lease
        of an owner of whom `is_dead` holds counts as expired."""
        return self._database.change(lambda connection: acquire(connection, resource, owner, lease_s, is_dead))

    def renew(self, lease: Lease, lease_s: float) -> Lease:
        """Extend the lease to `lease_s` seconds from now. Raises `LeaseLost` when another owner holds the resource."""
        return self._database.change(lambda connection: renew(connection, lease, lease_s))

    def release(self, lease: Lease) -> None:
        """Release the lease; does nothing when another owner holds the resource."""
        self._database.change(lambda connection: release(connection, lease))


def acquire(
    connection: sa.Connection,
    resource: str,
    owner: str,
    lease_s: float,
    is_dead: Callable[[str], bool] = lambda owner: False,
) -> Lease | None:
    """`Leases.acquire` inside the caller's transaction."""
    now = clock.time()
    empty = {"resource": resource, "owner": None, "fence": 0, "until": 0.0}
    connection.execute(INSERT[connection.dialect.name](_table).on_conflict_do_nothing(), [empty])
    held = connection.execute(_table.select().where(_table.c.resource == resource).with_for_update()).one()
    if held.owner not in (None, owner) and held.until > now and not is_dead(held.owner):
        return None
    same = held.owner == owner and held.until > now
    lease = Lease(resource, owner, held.fence if same else held.fence + 1, now + lease_s)
    values = {"owner": owner, "fence": lease.fence, "until": lease.until}
    connection.execute(_table.update().where(_table.c.resource == resource).values(values))
    return lease


def renew(connection: sa.Connection, lease: Lease, lease_s: float) -> Lease:
    """`Leases.renew` inside the caller's transaction."""
    check(connection, lease)
    until = clock.time() + lease_s
    connection.execute(_table.update().where(_table.c.resource == lease.resource).values(until=until))
    return Lease(lease.resource, lease.owner, lease.fence, until)


def release(connection: sa.Connection, lease: Lease) -> None:
    """`Leases.release` inside the caller's transaction."""
    mine = (_table.c.resource == lease.resource, _table.c.fence == lease.fence)
    connection.execute(_table.update().where(*mine).values(owner=None, until=0.0))


def held_by(connection: sa.Connection, resource: str) -> str | None:
    """The owner that holds `resource`; None when its lease is free or ran out."""
    query = sa.select(_table.c.owner).where(_table.c.resource == resource, _table.c.until > clock.time())
    return connection.scalar(query)


def lock_free(connection: sa.Connection, resources: Sequence[str]) -> set[str]:
    """Those of `resources` that nobody holds. Nobody can acquire one that was held before until the transaction
    ends."""
    query = _table.select().where(_table.c.resource.in_(resources)).order_by(_table.c.resource).with_for_update()
    now = clock.time()
    held = {row.resource for row in connection.execute(query) if row.owner is not None and row.until > now}
    return set(resources) - held


def forget(connection: sa.Connection, resources: Sequence[str]) -> None:
    """Delete the rows of resources that are gone. A lease of one is lost; a new one has another owner."""
    connection.execute(_table.delete().where(_table.c.resource.in_(resources)))


def check(connection: sa.Connection, lease: Lease) -> None:
    """Raise `LeaseLost` unless `lease` is the resource's newest; call it in the transaction that writes under the
    lease.

    An expired lease stays valid until another owner acquires the resource."""
    if list(fetch(connection, _HOLDER, "resource", [lease.resource])) != [(lease.fence, lease.owner)]:
        raise LeaseLost(
            f"'{lease.owner}' no longer holds '{lease.resource}'",
            "another process took over after the lease ran out; lease for longer, or renew in time",
        )
