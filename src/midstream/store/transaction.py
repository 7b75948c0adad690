"""One transaction of the writer, as seen by its operations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

import sqlalchemy as sa


class Batch(Protocol):
    """Rows that a package buffers during a transaction to write them together."""

    def flush(self) -> None:
        """Write the buffered rows. Called before any other access to the database, and at the end."""
        ...


B = TypeVar("B", bound=Batch)


class Transaction:
    """The writer's connection until it commits.

    `keys` are the keys of all operations in the transaction: a batch may look them up at once."""

    def __init__(self, connection: sa.Connection, keys: Collection[str] = ()) -> None:
        self.raw, self.keys = connection, keys
        """`raw` is the connection without flushing, for batches."""
        self.wrote = False
        self._batches: dict[object, Batch] = {}

    @property
    def connection(self) -> sa.Connection:
        """The connection for reads and writes, after flushing all batches."""
        self.flush()
        self.wrote = True
        return self.raw

    def batch(self, kind: Callable[[Transaction], B]) -> B:
        """Return the transaction's batch of this `kind`, created on first use."""
        batch = self._batches.get(kind)
        if batch is None:
            batch = self._batches[kind] = kind(self)
        return batch  # pyright: ignore[reportReturnType]  the key fixes the type

    def flush(self) -> None:
        """Write the rows of all batches."""
        for batch in self._batches.values():
            batch.flush()
