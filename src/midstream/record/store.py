"""The durable store: every step is on disk before it is used, and what was acknowledged survives `kill -9`.

One writer thread owns all writes. It commits whatever waits in one transaction, so that many concurrent callers share
one disk flush. Readers use connections of their own and see committed data only. The default is SQLite in WAL mode; a
URL names another database. Not for two processes that write the same trajectories: the last one wins.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from midstream.core.errors import RunError
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import schema

T = TypeVar("T")

PAGE = 64
"""Trajectories a streaming read holds at once."""
LARGEST_GROUP = 1024
"""Operations one transaction takes at most."""

Operation = Callable[["_Transaction"], None]
Handed = tuple[Operation, Future[None] | None]
"""An operation and who waits for it; None when nobody does."""


class Store:
    """Trajectories and their steps in a database.

    `url_or_path` is a database URL, or the path of a SQLite file, made when it is not there. `durability` says what an
    acknowledgement means on SQLite: `full` survives a power cut, `normal` survives the death of the process only.
    Raises `RunError` when the file cannot be used.
    """

    def __init__(self, url_or_path: str | Path, durability: Literal["full", "normal"] = "full") -> None:
        self._engine, self.where = schema.open_engine(url_or_path, durability)
        self.commits = 0
        """Transactions that wrote something since the store was opened."""
        self._unreported: BaseException | None = None
        self._closed = False
        self._queue: queue.SimpleQueue[Handed | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="midstream-store", daemon=True)
        self._writer.start()

    def begin(
        self, trajectory_uid: str, prompt_uid: str, task: Task, channel: str, train_step: int | None = None
    ) -> None:
        """Record that a trajectory runs; one with the same uid is replaced, with its steps.

        Returns at once. It is on disk before any later call is acknowledged; if it cannot be, a later call raises.
        """
        trajectory = Trajectory(uid=trajectory_uid, prompt_uid=prompt_uid, task=task, status=Status.RUNNING)
        row = _new_row(trajectory, channel, train_step)
        self._post(lambda transaction: transaction.begin(row))

    async def append(self, step: Step, channel: str = "train") -> None:
        """Record `step`; returns when it is on disk. The step with the same trajectory and index is replaced.

        `channel` counts only for a trajectory that was never begun: it is begun here, with an empty task.
        """
        await asyncio.wrap_future(self._append(step, channel))

    def append_sync(self, step: Step, channel: str = "train") -> None:
        """`append` for code that is not async."""
        self._append(step, channel).result()

    def update_step(self, step: Step) -> None:
        """Replace a recorded step (its reward, `is_last`, metadata changed). Returns at once, as `begin` does."""
        row = schema.step_row(step)
        self._post(lambda transaction: transaction.step(row))

    async def finish(self, trajectory: Trajectory, channel: str = "train") -> None:
        """Record how `trajectory` ended, and its steps with their rewards; returns when it is on disk.

        Steps recorded before that `trajectory` does not hold are kept.
        """
        row = _new_row(trajectory, channel, None)
        step_rows = [schema.step_row(step) for step in trajectory.steps]
        await asyncio.wrap_future(self._submit(lambda transaction: transaction.finish(row, step_rows)))

    def discard_from(self, train_step: int) -> None:
        """Delete every trajectory recorded at or after `train_step`, with its steps."""
        self._submit(lambda transaction: transaction.discard_from(train_step)).result()

    def trajectory(self, uid: str) -> Trajectory:
        """The trajectory `uid` with its steps; `RunError` when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        if not found:
            raise RunError(
                f"no trajectory '{uid}' in '{self.where}'", "'midstream show RUN' lists those that are there"
            )
        return found[0][1]

    def trajectories(
        self,
        channel: str | None = None,
        train_step: int | None = None,
        status: Status | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Trajectory]:
        """Trajectories in the order they were begun, a few in memory at a time.

        Holds no lock between pages, so what is written meanwhile may be seen or not.
        """
        order = schema.trajectories.c.id
        query = schema.trajectories.select().where(*_filters(channel, train_step, status))
        query = query.order_by(order.desc() if newest_first else order)
        left, last = limit, None
        while left is None or left > 0:
            after = () if last is None else ((order < last) if newest_first else (order > last),)
            page = self._page(query.where(*after).limit(PAGE if left is None else min(PAGE, left)))
            if not page:
                return
            last = page[-1][0]
            left = None if left is None else left - len(page)
            for _, trajectory in page:
                yield trajectory

    def count(self, channel: str | None = None, train_step: int | None = None, status: Status | None = None) -> int:
        """How many trajectories there are."""
        query = (
            sa.select(sa.func.count()).select_from(schema.trajectories).where(*_filters(channel, train_step, status))
        )
        return self._read(lambda connection: int(connection.execute(query).scalar_one()))

    def groups(self, channel: str, train_step: int | None = None) -> dict[str, list[str]]:
        """The uids of the trajectories that share a prompt, by `prompt_uid`, in the order they were begun."""
        table = schema.trajectories.c
        query = sa.select(table.prompt_uid, table.uid).where(*_filters(channel, train_step, None)).order_by(table.id)
        found: dict[str, list[str]] = {}
        for prompt_uid, uid in self._read(lambda connection: connection.execute(query).all()):
            found.setdefault(prompt_uid, []).append(uid)
        return found

    def flush(self) -> None:
        """Return when everything handed in so far is on disk; raises what could not be written."""
        self._submit(lambda transaction: None).result()
        self._raise_unreported()

    def close(self) -> None:
        """Write what waits and let go of the database. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._writer.join()
        self._engine.dispose()
        self._raise_unreported()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, step: Step, channel: str) -> Future[None]:
        row = schema.step_row(step)
        task = Task(id=step.prompt_uid, prompt=step.messages)
        unbegun = Trajectory(uid=step.trajectory_uid, prompt_uid=step.prompt_uid, task=task, status=Status.RUNNING)
        return self._submit(lambda transaction: transaction.append(row, lambda: _new_row(unbegun, channel, None)))

    def _submit(self, operation: Operation) -> Future[None]:
        future: Future[None] = Future()
        self._hand_over((operation, future))
        return future

    def _post(self, operation: Operation) -> None:
        self._hand_over((operation, None))

    def _hand_over(self, handed: Handed) -> None:
        if self._closed:
            raise RuntimeError(f"the store '{self.where}' is closed")
        self._raise_unreported()
        self._queue.put(handed)

    def _raise_unreported(self) -> None:
        """Somebody must hear of a write that failed while nobody waited for it."""
        if self._unreported is not None:
            error, self._unreported = self._unreported, None
            raise error

    def _write(self) -> None:
        begun: set[str] = set()
        closing = False
        while not closing:
            group: list[Handed] = []
            handed = self._queue.get()
            while handed is not None:
                group.append(handed)
                if len(group) == LARGEST_GROUP or self._queue.empty():
                    break
                handed = self._queue.get()  # does not wait: only this thread takes things out
            closing = handed is None
            if group:
                self._commit(group, begun)

    def _commit(self, group: list[Handed], begun: set[str]) -> None:
        try:
            with self._engine.begin() as connection:
                transaction = _Transaction(connection, begun)
                for operation, _ in group:
                    operation(transaction)
                transaction.flush()
        except BaseException as error:  # whatever it was belongs to those who wait, and this thread must live on
            begun.clear()
            if len(group) > 1 and not isinstance(error, OperationalError):
                for one in group:  # one bad row must not cost the others theirs
                    self._commit([one], begun)
                return
            reported = schema.explained(error, self.where) if isinstance(error, DBAPIError) else error
            for _, future in group:
                if future is None:
                    self._unreported = reported
                elif future.set_running_or_notify_cancel():
                    future.set_exception(reported)
        else:
            self.commits += transaction.wrote
            for _, future in group:
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_result(None)

    def _page(self, query: sa.Select[Any]) -> list[tuple[int, Trajectory]]:
        def read(connection: sa.Connection) -> list[tuple[int, Trajectory]]:
            rows = connection.execute(query).mappings().all()
            owners: dict[str, list[Step]] = {row["uid"]: [] for row in rows}
            of_them = schema.steps.c.trajectory_uid.in_(owners)
            in_order = schema.steps.select().where(of_them).order_by(schema.steps.c.step_index)
            for row in connection.execute(in_order).mappings():
                owners[row["trajectory_uid"]].append(schema.step_from_row(row))
            return [(row["id"], schema.trajectory_from_row(row, owners[row["uid"]])) for row in rows]

        return self._read(read)

    def _read(self, read: Callable[[sa.Connection], T]) -> T:
        self.flush()
        try:
            with self._engine.begin() as connection:
                return read(connection)
        except DBAPIError as error:
            raise schema.explained(error, self.where) from error.orig


class _Transaction:
    """One transaction of the writer. Steps are gathered and written together; `begun` outlives it."""

    def __init__(self, connection: sa.Connection, begun: set[str]) -> None:
        self._connection = connection
        self._begun = begun
        self._steps: dict[tuple[str, int], dict[str, Any]] = {}
        self.wrote = False

    def begin(self, row: dict[str, Any]) -> None:
        self.flush()
        of_it = schema.steps.c.trajectory_uid == row["uid"]
        self._execute(schema.steps.delete().where(of_it))
        self._execute(schema.trajectories.delete().where(schema.trajectories.c.uid == row["uid"]))
        self._execute(schema.trajectories.insert(), [row])
        self._begun.add(row["uid"])

    def append(self, row: dict[str, Any], unbegun: Callable[[], dict[str, Any]]) -> None:
        if row["trajectory_uid"] not in self._begun:
            self._execute(schema.insert_missing_trajectory(self._connection), [unbegun()])
            self._begun.add(row["trajectory_uid"])
        self.step(row)

    def step(self, row: dict[str, Any]) -> None:
        self._steps[row["trajectory_uid"], row["step_index"]] = row

    def finish(self, row: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        self._execute(schema.upsert_trajectory(self._connection), [row])
        for step in steps:
            self.step(step)
        self._begun.discard(row["uid"])

    def discard_from(self, train_step: int) -> None:
        self.flush()
        table = schema.trajectories
        late = table.c.train_step >= train_step
        uids = sa.select(table.c.uid).where(late).scalar_subquery()
        self._execute(schema.steps.delete().where(schema.steps.c.trajectory_uid.in_(uids)))
        self._execute(table.delete().where(late))
        self._begun.clear()

    def flush(self) -> None:
        if self._steps:
            self._execute(schema.upsert_step(self._connection), list(self._steps.values()))
            self._steps.clear()

    def _execute(self, statement: sa.Executable, rows: list[dict[str, Any]] | None = None) -> None:
        self._connection.execute(statement, rows)
        self.wrote = True


def _new_row(trajectory: Trajectory, channel: str, train_step: int | None) -> dict[str, Any]:
    return {
        **schema.trajectory_row(trajectory),
        "channel": channel,
        "train_step": train_step,
        "created_at": time.time(),
    }


def _filters(channel: str | None, train_step: int | None, status: Status | None) -> list[sa.ColumnElement[bool]]:
    table = schema.trajectories.c
    asked = ((table.channel, channel), (table.train_step, train_step), (table.status, status))
    return [column == value for column, value in asked if value is not None]
