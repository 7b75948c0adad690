"""The durable store: every step is on disk before it is used, and what was acknowledged survives `kill -9`.

One writer thread owns all writes (`writer`). Readers use connections of their own and see committed data only. The
default is SQLite in WAL mode; a `postgresql://` URL names a server. Several processes may use one store. Of those
that write the same trajectory the last one wins, unless they are servers (`servers`): then one of them holds it.

What is not `async` here waits for the database: a server calls it in a thread (`asyncio.to_thread`).

Each thing a store does is in a module of its own: `recording`, `lookup`, `leasing`, `notes`, `servers`; here
they come together.
"""

from __future__ import annotations

from collections.abc import Collection

from midstream.core import clock
from midstream.record.groups import GroupState
from midstream.record.leasing import Leasing
from midstream.record.lookup import Lookup
from midstream.record.notes import Notes
from midstream.record.recording import Recording
from midstream.record.retention import prunable
from midstream.record.retention import vacuum as reclaim
from midstream.record.servers import Servers

PRUNED_AT_ONCE = 500
"""Trajectories one transaction deletes at most, so that others need not wait long."""


class Store(Recording, Lookup, Leasing, Notes, Servers):
    """Trajectories and their steps in a database.

    `url_or_path` is a database URL, or the path of a SQLite file, made when it is not there. `durability` says what an
    acknowledgement means: `full` survives a power cut, `normal` survives the death of this process only. Raises
    `RunError` when the database cannot be used.
    """

    def prune(
        self,
        older_than_s: float,
        channel: str | None = None,
        *,
        keep: Collection[str] = (GroupState.WAITING, GroupState.READY),
        vacuum: bool = False,
    ) -> int:
        """Delete the trajectories that ended longer ago than `older_than_s` seconds, with all that is kept of them;
        returns how many.

        Those that run, that somebody holds on lease, or whose group is in one of the states `keep`, stay. `vacuum`
        gives their space back to the file system, while others wait; without it what is recorded next takes that space.
        """
        states = [GroupState(state) for state in keep]
        condition = prunable(clock.time() - older_than_s, channel, states, PRUNED_AT_ONCE)
        pruned = 0
        while count := self._writer.submit_sync(lambda transaction: transaction.discard(condition)):
            pruned += count
        if vacuum:
            reclaim(self._engine, self.where)
        return pruned
