"""The durable store: every step is on disk before it is used, and acknowledged data survives `kill -9`.

`Store` composes the `trajectories`, `groups` and `annotations` of a database, and the `servers` that share it. One
writer thread does all writes; readers use connections of their own and see committed data only. SQLite in WAL mode is
the default; a `postgresql://` URL names a server. Several processes may use one store. When several write the same
trajectory the last one wins, unless they are servers: then one of them holds it.

Methods that are not `async` wait for the database: a server calls them in a thread (`asyncio.to_thread`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from midstream.core import clock
from midstream.core.errors import MidstreamError
from midstream.record.annotations import Annotations
from midstream.record.group_states import GroupState
from midstream.record.groups import Groups
from midstream.record.retention import prunable
from midstream.record.retention import vacuum as reclaim
from midstream.record.schema import SCHEMA
from midstream.record.trajectories import Trajectories, adopt
from midstream.record.trajectory_batch import TrajectoryBatch
from midstream.store.database import Database
from midstream.store.servers import SCHEMA as SERVERS
from midstream.store.servers import Servers

PRUNED_AT_ONCE = 500
"""Most trajectories deleted in one transaction, to limit how long others wait."""


class Store:
    """Trajectories and their steps in a database.

    `url_or_path`, `durability` and `read_only` are those of `Database`. Raises `RunError` when it cannot be used.
    """

    def __init__(
        self,
        url_or_path: str | Path,
        durability: Literal["full", "normal"] = "full",
        *,
        read_only: bool = False,
    ) -> None:
        self.database = Database(url_or_path, durability, read_only=read_only)
        try:
            self.database.require(SERVERS, SCHEMA)  # before `record` drops their former shared version
            self.servers = Servers(self.database, adopt)
        except MidstreamError:
            self.database.close()
            raise
        self.trajectories = Trajectories(self.database, self.servers)
        self.groups = Groups(self.database)
        self.annotations = Annotations(self.database)

    @property
    def where(self) -> str:
        """Path, or URL without password."""
        return self.database.where

    async def acknowledge(self) -> None:
        """Return when everything recorded so far is on disk; raises if it could not be written."""
        await self.database.acknowledge()

    def flush(self) -> None:
        """`acknowledge` for code that is not async."""
        self.database.flush()

    def prune(
        self,
        older_than_s: float,
        channel: str | None = None,
        *,
        keep: Collection[str] = (GroupState.WAITING, GroupState.READY),
        vacuum: bool = False,
    ) -> int:
        """Delete the trajectories that ended more than `older_than_s` seconds ago, with their annotations; returns
        their number.

        Running trajectories, and those in a group that is leased or in one of the states `keep`, are kept. `vacuum`
        returns their space to the file system and blocks other writers; otherwise later recordings reuse the space.
        """
        states = [GroupState(state) for state in keep]
        condition = prunable(clock.time() - older_than_s, channel, states, PRUNED_AT_ONCE)
        pruned = 0
        while count := self.database.write(lambda transaction: transaction.batch(TrajectoryBatch).discard(condition)):
            pruned += count
        if vacuum:
            reclaim(self.database.engine, self.where)
        return pruned

    def close(self) -> None:
        """Finish pending writes and disconnect. Idempotent."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
