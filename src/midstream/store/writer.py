"""The writer thread. It commits all waiting operations in one transaction, so that callers share a disk flush.

An operation is a function of the `Transaction`. If it raises a `UserError` it must not have changed anything, and only
its caller gets the error. Any other error rolls the transaction back, and each of its operations is retried alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from midstream.core.errors import UserError
from midstream.store.engine import explained, is_database_failure, is_retryable
from midstream.store.transaction import Transaction

T = TypeVar("T")
Operation = Callable[[Transaction], T]
Waiting = Future[Any] | asyncio.Future[Any]

LARGEST_COMMIT = 1024
"""Most operations in one transaction."""
MANY, GATHER_S = 3, 0.001
"""After a transaction of at least `MANY` operations the next one waits `GATHER_S` seconds for more: starting and
committing transactions dominates the cost, so batching lowers latency under load."""
MOST_TRIES = 10
"""Attempts at a transaction that conflicts with others (serialization failure, deadlock)."""


@dataclass(slots=True)
class _Submitted:
    """An operation, the key whose state it needs, and its caller's future. Without an operation it is only a
    barrier."""

    operation: Operation[Any] | None
    key: str | None = None
    waiting: Waiting | None = None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Accepts operations from any thread and writes them in order."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        self._engine = engine.execution_options(writes=True)
        self._where = where
        self.commits = 0
        """Transactions that wrote something."""
        self._connection: sa.Connection | None = None
        self._unreported: BaseException | None = None
        self._closed = False
        self._queue: queue.SimpleQueue[_Submitted | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="midstream-store", daemon=True)
        self._thread.start()

    def post(self, operation: Operation[Any], key: str | None = None) -> None:
        """Submit an operation without waiting; a failure is raised by a later call."""
        self._enqueue(_Submitted(operation, key))

    async def submit(self, operation: Operation[T] | None, key: str | None = None) -> T:
        """Run an operation; returns its result once it is on disk. Cancelling the wait does not undo it."""
        return await self.write(operation, key)

    def write(self, operation: Operation[T] | None, key: str | None = None) -> asyncio.Future[T]:
        """`submit` as a future, which stays observable when its caller is cancelled."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._enqueue(_Submitted(operation, key, waiting))
        return waiting

    def submit_sync(self, operation: Operation[T] | None, key: str | None = None) -> T:
        """`submit` for code that is not async."""
        waiting: Future[T] = Future()
        self._enqueue(_Submitted(operation, key, waiting))
        return waiting.result()

    def close(self) -> None:
        """Finish pending operations and stop. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def raise_unreported(self) -> None:
        """Raise the error of a posted operation, if one failed."""
        if self._unreported is not None:
            error, self._unreported = self._unreported, None
            raise error

    def _enqueue(self, submitted: _Submitted) -> None:
        if self._closed:
            raise RuntimeError(f"the store '{self._where}' is closed")
        self.raise_unreported()
        self._queue.put(submitted)

    def _run(self) -> None:
        closing = many = False
        while not closing:
            together: list[_Submitted] = []
            submitted = self._queue.get()
            if many:
                time.sleep(GATHER_S)
            while submitted is not None:
                together.append(submitted)
                if len(together) == LARGEST_COMMIT or self._queue.empty():
                    break
                submitted = self._queue.get()  # never blocks: only this thread removes items
            closing = submitted is None
            self._commit([one for one in together if one.operation is not None])
            self._report(together)
            many = len(together) >= MANY
        if self._connection is not None:
            self._connection.close()

    def _commit(self, together: Sequence[_Submitted], tries: int = 1) -> None:
        """Run the operations in one transaction and keep each one's result or error."""
        if not together:
            return
        try:
            with self._begun() as connection:
                transaction = Transaction(connection, {one.key for one in together if one.key is not None})
                for one in together:
                    assert one.operation is not None
                    one.result = one.error = None
                    try:
                        one.result = one.operation(transaction)
                    except UserError as error:
                        one.error = error
                transaction.flush()
            self.commits += transaction.wrote
        except BaseException as error:  # delivered to the callers; this thread must survive
            if is_retryable(error) and tries < MOST_TRIES:
                self._commit(together, tries + 1)
            elif len(together) > 1 and not is_database_failure(error):
                for one in together:  # one bad row must not fail the others
                    self._commit([one])
            else:
                for one in together:
                    one.error = explained(error, self._where) if isinstance(error, DBAPIError) else error

    @contextlib.contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        """Begin a transaction. SQLite's connection is kept for the next one; PostgreSQL's returns to the pool, which
        checks that its server still answers."""
        connection = self._connection or self._engine.connect()
        self._connection = None
        try:
            with connection.begin():
                yield connection
        except BaseException:
            connection.close()
            raise
        if self._engine.dialect.name == "sqlite":
            self._connection = connection
        else:
            connection.close()

    def _report(self, together: Sequence[_Submitted]) -> None:
        by_loop: dict[AbstractEventLoop, list[_Submitted]] = {}
        for one in together:
            if isinstance(one.waiting, asyncio.Future):
                by_loop.setdefault(one.waiting.get_loop(), []).append(one)
            elif one.waiting is not None:
                _resolve([one])
            elif one.error is not None:
                self._unreported = one.error
        for loop, operations in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: no one waits there
                # One wake-up for all: waking a loop costs more than delivering the results.
                loop.call_soon_threadsafe(_resolve, operations)


def _resolve(together: Sequence[_Submitted]) -> None:
    for one in together:
        if one.waiting is None or one.waiting.done():
            continue  # cancelled
        if one.error is not None:
            one.waiting.set_exception(one.error)
        else:
            one.waiting.set_result(one.result)
