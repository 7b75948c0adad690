"""The one thread that writes. It commits whatever waits in one transaction, so that many callers share one disk flush.

An operation is a function of the `Transaction`. One that raises a `UserError` must have changed nothing: only whoever
handed it in hears of it. Any other error undoes the whole transaction, and each of its operations is tried alone.
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
from midstream.record.database import explained, is_everybodys, is_passing
from midstream.record.transaction import Transaction

T = TypeVar("T")
Operation = Callable[[Transaction], T]
Waiting = Future[Any] | asyncio.Future[Any]

LARGEST_COMMIT = 1024
"""Operations one transaction takes at most."""
MANY, GATHER_S = 3, 0.001
"""After a transaction of so many operations the next one waits a moment for company: to begin and end transactions is
much of the work, and with so many under way all are answered sooner for it."""
MOST_TRIES = 10
"""How often a transaction is tried that others stood in the way of."""


@dataclass(slots=True)
class _Handed:
    """An operation, the trajectory whose state it must know, and who waits for it. No operation: only wait in line."""

    operation: Operation[Any] | None
    uid: str | None = None
    waiting: Waiting | None = None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Takes operations from any thread and writes them, in order."""

    def __init__(self, engine: sa.Engine, where: str) -> None:
        self._engine = engine.execution_options(writes=True)
        self._where = where
        self.commits = 0
        """Transactions that wrote something."""
        self._connection: sa.Connection | None = None
        self._unreported: BaseException | None = None
        self._closed = False
        self._queue: queue.SimpleQueue[_Handed | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="midstream-store", daemon=True)
        self._thread.start()

    def post(self, operation: Operation[Any], uid: str | None = None) -> None:
        """Hand in an operation that nobody waits for; if it fails, a later call raises."""
        self._hand_in(_Handed(operation, uid))

    async def submit(self, operation: Operation[T] | None, uid: str | None = None) -> T:
        """Hand in an operation; returns its result once that is on disk. Cancelling the wait does not undo it."""
        return await self.write(operation, uid)

    def write(self, operation: Operation[T] | None, uid: str | None = None) -> asyncio.Future[T]:
        """`submit` for who must hear of it although they were cancelled: done once it is on disk."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._hand_in(_Handed(operation, uid, waiting))
        return waiting

    def submit_sync(self, operation: Operation[T] | None, uid: str | None = None) -> T:
        """`submit` for code that is not async."""
        waiting: Future[T] = Future()
        self._hand_in(_Handed(operation, uid, waiting))
        return waiting.result()

    def close(self) -> None:
        """Write what waits and end. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def raise_unreported(self) -> None:
        """Somebody must hear of a write that failed while nobody waited for it."""
        if self._unreported is not None:
            error, self._unreported = self._unreported, None
            raise error

    def _hand_in(self, handed: _Handed) -> None:
        if self._closed:
            raise RuntimeError(f"the store '{self._where}' is closed")
        self.raise_unreported()
        self._queue.put(handed)

    def _run(self) -> None:
        closing = many = False
        while not closing:
            together: list[_Handed] = []
            handed = self._queue.get()
            if many:
                time.sleep(GATHER_S)
            while handed is not None:
                together.append(handed)
                if len(together) == LARGEST_COMMIT or self._queue.empty():
                    break
                handed = self._queue.get()  # does not wait: only this thread takes things out
            closing = handed is None
            self._commit([one for one in together if one.operation is not None])
            self._report(together)
            many = len(together) >= MANY
        if self._connection is not None:
            self._connection.close()

    def _commit(self, together: Sequence[_Handed], tries: int = 1) -> None:
        """Run the operations in one transaction, and note on each what came of it."""
        if not together:
            return
        try:
            with self._begun() as connection:
                transaction = Transaction(connection, {one.uid for one in together if one.uid is not None})
                for one in together:
                    assert one.operation is not None
                    one.result = one.error = None
                    try:
                        one.result = one.operation(transaction)
                    except UserError as error:
                        one.error = error
                transaction.flush()
            self.commits += transaction.wrote
        except BaseException as error:  # whatever it was belongs to those who wait, and this thread must live on
            if is_passing(error) and tries < MOST_TRIES:
                self._commit(together, tries + 1)
            elif len(together) > 1 and not is_everybodys(error):
                for one in together:  # one bad row must not cost the others theirs
                    self._commit([one])
            else:
                for one in together:
                    one.error = explained(error, self._where) if isinstance(error, DBAPIError) else error

    @contextlib.contextmanager
    def _begun(self) -> Iterator[sa.Connection]:
        """A transaction. A file's connection is kept for the next one; a server may have gone by then, and the pool
        looks whether it has."""
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

    def _report(self, together: Sequence[_Handed]) -> None:
        by_loop: dict[AbstractEventLoop, list[_Handed]] = {}
        for one in together:
            if isinstance(one.waiting, asyncio.Future):
                by_loop.setdefault(one.waiting.get_loop(), []).append(one)
            elif one.waiting is not None:
                _tell([one])
            elif one.error is not None:
                self._unreported = one.error
        for loop, of_it in by_loop.items():
            with contextlib.suppress(RuntimeError):  # it was closed: nobody waits there any more
                # Waking a loop costs more than all it is told.
                loop.call_soon_threadsafe(_tell, of_it)


def _tell(together: Sequence[_Handed]) -> None:
    for one in together:
        if one.waiting is None or one.waiting.done():
            continue  # given up
        if one.error is not None:
            one.waiting.set_exception(one.error)
        else:
            one.waiting.set_result(one.result)
