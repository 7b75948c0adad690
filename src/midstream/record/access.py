"""Access to the store's database: what waits is written by one thread, and readers see what was handed in before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from midstream.record.database import explained, open_engine
from midstream.record.writer import Operation, Writer

T = TypeVar("T")


class Access:
    """An open database. `Store` says what its arguments mean."""

    def __init__(self, url_or_path: str | Path, durability: Literal["full", "normal"] = "full") -> None:
        self._engine, self.where = open_engine(url_or_path, durability)
        self._writer = Writer(self._engine, self.where)
        self._closed = False
        self.server: str | None = None
        """By which the trajectories are known that this process holds (`Servers.join`); None where it holds none."""

    @property
    def commits(self) -> int:
        """Transactions that wrote something since the store was opened."""
        return self._writer.commits

    async def acknowledge(self) -> None:
        """Return when everything handed in so far is on disk; raises what could not be written."""
        await self._writer.submit(None)
        self._writer.raise_unreported()

    def flush(self) -> None:
        """`acknowledge` for code that is not async."""
        self._writer.submit_sync(None)
        self._writer.raise_unreported()

    def write(self, operation: Operation[T]) -> T:
        """Run `operation` in the writer's transaction; returns its result when that is on disk."""
        return self._writer.submit_sync(operation)

    def read(self, read: Callable[[sa.Connection], T]) -> T:
        """Run `read` on a connection that sees everything handed in so far."""
        self.flush()
        try:
            with self._engine.begin() as connection:
                return read(connection)
        except DBAPIError as error:
            raise explained(error, self.where) from error.orig

    def close(self) -> None:
        """Write what waits and let go of the database. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        self._engine.dispose()
        self._writer.raise_unreported()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, change: Callable[[sa.Connection], T]) -> T:
        return self._writer.submit_sync(lambda transaction: change(transaction.connection))
