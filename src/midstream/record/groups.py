"""Groups in the store, each leased for training once. `group_states` defines when one is ready."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from midstream.core import clock
from midstream.record import group_states, loading, queue_stats
from midstream.record.group_states import Key, Leased
from midstream.store.database import Database


@dataclass(eq=False)
class Groups:
    """The groups of a database, as a trainer leases them."""

    database: Database

    def lease(
        self, owner: str, count: int, channel: str, lease_s: float, min_version: int | None = None
    ) -> list[Leased]:
        """Lease up to `count` ready groups of `channel` to `owner`, oldest first.

        The lease is exclusive for `lease_s` seconds. When a group is due by its deadline, its running trajectories end
        as timed out. A group all of whose steps are older than `min_version` becomes stale and is not leased.
        """
        now = clock.time()
        keys = self.database.change(
            lambda connection: group_states.lease(connection, owner, count, channel, now + lease_s, now, min_version)
        )
        return self.database.read(lambda connection: loading.read_groups(connection, keys))

    def consume(self, owner: str, keys: Collection[Key], train_step: int) -> None:
        """Mark groups (`Leased.key`) as trained on at `train_step`, so that they are never leased again. Idempotent.
        Raises `LeaseLost`, and changes nothing, if `owner` no longer holds one of them."""
        self.database.change(lambda connection: group_states.consume(connection, owner, keys, train_step))

    def release(self, owner: str, keys: Collection[Key]) -> int:
        """Release groups (`Leased.key`) that were not trained on; returns how many `owner` held."""
        return self.database.change(lambda connection: group_states.release(connection, owner, keys, clock.time()))

    def renew(self, owner: str, lease_s: float) -> int:
        """Extend all leases of `owner` to `lease_s` seconds from now; returns the number of groups."""
        return self.database.change(lambda connection: group_states.renew(connection, owner, clock.time() + lease_s))

    def reopen(self, owner: str, after_train_step: int) -> int:
        """Make groups that `owner` consumed after that step, or holds, ready again, for a run that resumes from an
        earlier step. Returns the number of groups."""
        return self.database.change(
            lambda connection: group_states.reopen(connection, owner, after_train_step, clock.time())
        )

    def counts(self, channel: str | None = None) -> dict[str, float]:
        """Return the number of groups by state (`waiting`, `ready`, `leased`, `consumed`, `stale`, `rejected`), and
        `oldest_ready_s`, the age in seconds of the oldest ready group."""
        now = clock.time()
        rows = self.database.read(lambda connection: connection.execute(queue_stats.count_query(channel, now)).all())
        return queue_stats.parse_counts(rows, now)

    def ready_count(self, channel: str) -> int:
        """Return the number of ready groups of a channel; cheaper than `counts`."""
        query = queue_stats.ready(channel, clock.time())
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def left_out(self, channel: str | None = None) -> int:
        """Return the number of trajectories that joined a group, or ended, after it was leased, and so are not trained
        on. `Trajectories.open` prevents this; `begin` does not check."""
        query = queue_stats.left_out(channel)
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def oldest_ready_version(self, channel: str | None = None) -> int | None:
        """Return the lowest, over the ready groups, of the newest policy version in each: the staleness of the training
        data. None if no group with steps is ready."""
        now = clock.time()
        return self.database.read(lambda connection: queue_stats.oldest_ready_version(connection, channel, now))
