"""One transaction of the writer, as its operations see it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

import sqlalchemy as sa


class Batch(Protocol):
    """Rows that a package gathers during a transaction, to write them together."""

    def flush(self) -> None:
        """Write what was gathered. Called at the end, and before anything else looks at the database."""
        ...


B = TypeVar("B", bound=Batch)


class Transaction:
    """What the writer does with a connection until it commits.

    `keys` are those that all operations of the transaction were submitted with: what a batch may look up at once."""

    def __init__(self, connection: sa.Connection, keys: Collection[str] = ()) -> None:
        self.raw, self.keys = connection, keys
        """`raw` is the connection without flushing: for batches."""
        self.wrote = False
        self._batches: dict[object, Batch] = {}

    @property
    def connection(self) -> sa.Connection:
        """To read and write with. Everything gathered before is in the database."""
        self.flush()
        self.wrote = True
        return self.raw

    def batch(self, kind: Callable[[Transaction], B]) -> B:
        """The batch that `kind` makes of this transaction; one of a kind."""
        found = self._batches.get(kind)
        if found is None:
            found = self._batches[kind] = kind(self)
        return found  # pyright: ignore[reportReturnType]  the key fixes the type

    def flush(self) -> None:
        """Write what all batches gathered."""
        for batch in self._batches.values():
            batch.flush()
