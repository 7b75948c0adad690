"""A database shared by several packages: many readers and one writer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from midstream.core.errors import RunError
from midstream.store.engine import explained, open_engine
from midstream.store.schema import Schema, check_version, create_or_upgrade
from midstream.store.writer import Operation, Writer

T = TypeVar("T")


class Database:
    """An open database.

    `url_or_path` is a database URL, or the path of a SQLite file, created when missing. `durability` says what an
    acknowledgement means: `full` survives a power cut, `normal` the death of this process. With `read_only` the
    database must exist; nothing is written or migrated, and no writer thread runs. Several processes may use one
    database. Raises `RunError` when it cannot be used.
    """

    def __init__(
        self,
        url_or_path: str | Path,
        durability: Literal["full", "normal"] = "full",
        *,
        read_only: bool = False,
    ) -> None:
        self.engine, self.where = open_engine(url_or_path, durability, read_only)
        self.read_only = read_only
        self._writer = None if read_only else Writer(self.engine, self.where)
        self._closed = False
        self._required: set[tuple[str, int]] = set()

    @property
    def commits(self) -> int:
        """Transactions that wrote something since the database was opened."""
        return 0 if self._writer is None else self._writer.commits

    def require(self, *schemas: Schema) -> None:
        """Create or upgrade the tables of packages, all or none; read-only, check that they are there. Raises
        `RunError`."""
        missing = [schema for schema in schemas if (schema.name, schema.version) not in self._required]
        if not missing:
            return
        try:
            with self.engine.connect().execution_options(writes=not self.read_only) as connection, connection.begin():
                for schema in missing:
                    if self.read_only:
                        check_version(connection, schema, self.where)
                    else:
                        create_or_upgrade(connection, schema, self.where)
        except DBAPIError as error:
            raise explained(error, self.where) from error.orig
        self._required.update((schema.name, schema.version) for schema in missing)

    def post(self, operation: Operation[Any], key: str | None = None) -> None:
        """Submit a write without waiting. It is on disk before any later call is acknowledged; if it fails, a later
        call raises."""
        self._writing().post(operation, key)

    async def submit(self, operation: Operation[T], key: str | None = None) -> T:
        """Run a write; returns its result when it is on disk. Cancelling the wait does not undo it."""
        return await self._writing().submit(operation, key)

    def submit_future(self, operation: Operation[T], key: str | None = None) -> asyncio.Future[T]:
        """`submit` as a future, which stays observable when its caller is cancelled."""
        return self._writing().write(operation, key)

    def write(self, operation: Operation[T], key: str | None = None) -> T:
        """`submit` for code that is not async."""
        return self._writing().submit_sync(operation, key)

    def change(self, change: Callable[[sa.Connection], T]) -> T:
        """`write` for an operation that only needs the connection."""
        return self.write(lambda transaction: change(transaction.connection))

    def read(self, read: Callable[[sa.Connection], T]) -> T:
        """Run `read` on a connection that sees everything submitted so far."""
        self.flush()
        try:
            with self.engine.begin() as connection:
                return read(connection)
        except DBAPIError as error:
            raise explained(error, self.where) from error.orig

    async def acknowledge(self) -> None:
        """Return when everything submitted so far is on disk; raises what could not be written."""
        if self._writer is not None:
            await self._writer.submit(None)
            self._writer.raise_unreported()

    def flush(self) -> None:
        """`acknowledge` for code that is not async."""
        if self._writer is not None:
            self._writer.submit_sync(None)
            self._writer.raise_unreported()

    def close(self) -> None:
        """Finish pending writes and disconnect. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        self.engine.dispose()
        if self._writer is not None:
            self._writer.raise_unreported()

    def _writing(self) -> Writer:
        if self._writer is None:
            raise RunError(f"'{self.where}' was opened read-only", "open it without read_only to write")
        return self._writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
