"""Leasing: groups of trajectories go out for training, once each. `groups` says when one is ready."""

from __future__ import annotations

from collections.abc import Collection

from midstream.core import clock
from midstream.record import census, groups, reading
from midstream.record.access import Access
from midstream.record.branches import Branches, counting_branches
from midstream.record.groups import Leased
from midstream.record.transaction import Transaction


class Leasing(Access):
    """How a trainer gets its groups."""

    def lease(
        self, owner: str, count: int, channel: str, lease_s: float, min_version: int | None = None
    ) -> list[Leased]:
        """Up to `count` groups of `channel` that are ready, the first to become so first, for `owner` to train on.

        Nobody else gets them for `lease_s` seconds. When a group is due by its deadline, what still runs in it ends as
        timed out. A group all of whose steps are older than `min_version` becomes stale and is not handed out.
        """
        now = clock.time()

        def taken(transaction: Transaction) -> list[groups.Key]:
            return groups.lease(transaction.connection, owner, count, channel, now + lease_s, now, min_version)

        keys = self._writer.submit_sync(taken)
        return self.read(lambda connection: reading.read_groups(connection, keys))

    def consume(self, owner: str, keys: Collection[groups.Key], train_step: int) -> None:
        """Mark groups (`Leased.key`) as trained on at `train_step`, so that nobody gets them again. Idempotent. Raises
        `LeaseLost`, and changes nothing, when `owner` no longer holds one of them."""
        self._change(lambda connection: groups.consume(connection, owner, keys, train_step))

    def release(self, owner: str, keys: Collection[groups.Key]) -> int:
        """Give back groups (`Leased.key`) that were not trained on; returns how many `owner` held."""
        return self._change(lambda connection: groups.release(connection, owner, keys, clock.time()))

    def renew(self, owner: str, lease_s: float) -> int:
        """Hold all that `owner` holds for `lease_s` seconds from now; returns how many groups."""
        return self._change(lambda connection: groups.renew(connection, owner, clock.time() + lease_s))

    def reopen(self, owner: str, after_train_step: int) -> int:
        """For a run that goes back to an earlier step: what it consumed after that step, and what it holds, is ready
        again. Returns how many groups."""
        return self._change(lambda connection: groups.reopen(connection, owner, after_train_step, clock.time()))

    def group_counts(self, channel: str | None = None) -> dict[str, float]:
        """How many groups are `waiting`, `ready`, `leased`, `consumed`, `stale` and `rejected` (`groups` says what each
        is), and `oldest_ready_s`, for how long the first of the ready ones has been so."""
        now = clock.time()
        rows = self.read(lambda connection: connection.execute(census.counting(channel, now)).all())
        return census.counted(rows, now)

    def ready_groups(self, channel: str) -> int:
        """How many groups of a channel wait for training: `group_counts`, for who asks often."""
        query = census.ready(channel, clock.time())
        return self.read(lambda connection: int(connection.execute(query).scalar_one()))

    def left_out(self, channel: str | None = None) -> int:
        """How many trajectories joined a group, or ended, after it was handed out, and so are not trained on. `open`
        lets none in; `begin` takes what it is told."""
        return self.read(lambda connection: int(connection.execute(census.left_out(channel)).scalar_one()))

    def branches(self, channel: str | None = None) -> list[Branches]:
        """What calls that could not go on from recorded tokens cost, by cause, the dearest first."""
        rows = self.read(lambda connection: connection.execute(counting_branches(channel)).all())
        return [Branches(cause, calls, int(tokens)) for cause, calls, tokens in rows]

    def oldest_ready_version(self, channel: str | None = None) -> int | None:
        """The newest policy version in the group, of those that are ready, in which that is the lowest: how stale what
        waits for training is. None when nothing that has steps waits."""
        now = clock.time()
        return self.read(lambda connection: census.oldest_ready_version(connection, channel, now))
