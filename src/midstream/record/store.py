"""The durable store: every step is on disk before it is used, and what was acknowledged survives `kill -9`.

One writer thread owns all writes (`writer`). Readers use connections of their own and see committed data only. The
default is SQLite in WAL mode; a `postgresql://` URL names a server. Several processes may use one store, but for those
that write the same trajectory: there the last one wins.

What is not `async` here waits for the database: a server calls it in a thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from midstream.core.errors import RunError
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import curation, feedback, groups, reading, schema
from midstream.record.curation import Curation, Quality
from midstream.record.database import explained, open_engine
from midstream.record.exact_json import to_json
from midstream.record.feedback import Feedback
from midstream.record.filters import Filters, conditions
from midstream.record.groups import GroupState, Leased
from midstream.record.reading import Recorded
from midstream.record.retention import prunable
from midstream.record.retention import vacuum as reclaim
from midstream.record.rows import Row, step_row, trajectory_row
from midstream.record.transaction import Transaction
from midstream.record.writer import Operation, Writer

T = TypeVar("T")

PAGE = 64
"""Trajectories a streaming read holds at once."""
PRUNED_AT_ONCE = 500
"""Trajectories one transaction deletes at most, so that others need not wait long."""


class Store:
    """Trajectories and their steps in a database.

    `url_or_path` is a database URL, or the path of a SQLite file, made when it is not there. `durability` says what an
    acknowledgement means: `full` survives a power cut, `normal` survives the death of this process only. Raises
    `RunError` when the database cannot be used.
    """

    def __init__(self, url_or_path: str | Path, durability: Literal["full", "normal"] = "full") -> None:
        self._engine, self.where = open_engine(url_or_path, durability)
        self._writer = Writer(self._engine, self.where)
        self._closed = False

    @property
    def commits(self) -> int:
        """Transactions that wrote something since the store was opened."""
        return self._writer.commits

    def begin(
        self,
        trajectory_uid: str,
        prompt_uid: str,
        task: Task,
        channel: str,
        train_step: int | None = None,
        *,
        group_size: int | None = None,
        deadline: float | None = None,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a trajectory runs; one with the same uid is replaced, with its steps.

        Returns at once. It is on disk before any later call is acknowledged; if it cannot be, a later call raises.

        With a `group_size` or a `deadline` (seconds since 1970) the trajectories of its prompt in its channel are a
        group that `lease` hands out; the first that says so decides for all. `session` is kept as it is (JSON) for
        whoever goes on with the trajectory after a restart.
        """
        row = {**_begun_row(trajectory_uid, prompt_uid, task, channel, session), "train_step": train_step}
        self._writer.post(lambda transaction: transaction.begin(row, group_size, deadline), trajectory_uid)

    async def open(
        self,
        trajectory_uid: str,
        prompt_uid: str,
        task: Task,
        channel: str,
        *,
        group_size: int | None = None,
        deadline: float | None = None,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        """`begin` for who must know: returns when it is on disk, and raises when it cannot be."""
        row = _begun_row(trajectory_uid, prompt_uid, task, channel, session)
        await self._writer.submit(lambda transaction: transaction.begin(row, group_size, deadline), trajectory_uid)

    async def amend(self, trajectory_uid: str, *, task: Task, session: Mapping[str, Any] | None) -> None:
        """Replace what `begin` was given as `task` and `session`; returns when it is on disk."""
        trajectory = Trajectory(uid=trajectory_uid, prompt_uid="", task=task)
        kept = None if session is None else to_json(session, f"session of trajectory {trajectory_uid!r}")
        table = schema.trajectories
        values = {"task": trajectory_row(trajectory)["task"], "session": kept}
        changed = table.update().where(table.c.uid == trajectory_uid).values(values)
        await self._writer.submit(lambda transaction: transaction.connection.execute(changed))

    async def append(self, step: Step, channel: str = "train") -> None:
        """Record `step`; returns when it is on disk. The step with the same trajectory and index is replaced.

        A step whose trajectory has ended is kept beside the others, with `late` in its metadata and not trainable.
        `channel` counts only for a trajectory that was never begun: it is begun here, with an empty task.
        """
        await self.appending(step, channel)

    def appending(self, step: Step, channel: str = "train") -> asyncio.Future[None]:
        """`append` for who must hear of it although they were cancelled: done when the step is on disk."""
        return self._writer.write(_appended(step, channel), step.trajectory_uid)

    def append_sync(self, step: Step, channel: str = "train") -> None:
        """`append` for code that is not async."""
        self._writer.submit_sync(_appended(step, channel), step.trajectory_uid)

    async def update_step(self, step: Step) -> None:
        """Replace a recorded step (its reward, `is_last`, metadata changed); returns when it is on disk."""
        row = step_row(step)
        await self._writer.submit(lambda transaction: transaction.step(row))

    async def finish(self, trajectory: Trajectory, channel: str = "train") -> None:
        """Record how `trajectory` ended, and its steps with their rewards; returns when it is on disk.

        Steps recorded before that `trajectory` does not hold are kept. `channel` counts only for a trajectory that was
        never begun. Raises `AlreadyEnded`, and changes nothing, when it has ended since it was begun.
        """
        row = _new_row(trajectory, channel, None)
        step_rows = [step_row(step) for step in trajectory.steps]
        await self._writer.submit(lambda transaction: transaction.finish(row, step_rows), trajectory.uid)

    async def acknowledge(self) -> None:
        """Return when everything handed in so far is on disk; raises what could not be written."""
        await self._writer.submit(None)
        self._writer.raise_unreported()

    def flush(self) -> None:
        """`acknowledge` for code that is not async."""
        self._writer.submit_sync(None)
        self._writer.raise_unreported()

    def discard_from(self, train_step: int) -> None:
        """Delete every trajectory recorded at or after `train_step`, with its steps."""
        late = schema.trajectories.c.train_step >= train_step
        self._writer.submit_sync(lambda transaction: transaction.discard(late))

    def trajectory(self, uid: str) -> Trajectory:
        """The trajectory `uid` with its steps; `RunError` when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        if not found:
            raise RunError(
                f"no trajectory '{uid}' in '{self.where}'", "'midstream show RUN' lists those that are there"
            )
        return found[0].trajectory

    def trajectories(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Trajectory]:
        """Trajectories in the order they were begun, a few in memory at a time.

        Holds no lock between pages, so what is written meanwhile may be seen or not.
        """
        for page in self._pages(conditions(filters), limit, newest_first):
            for recorded in page:
                yield recorded.trajectory

    def find(self, uid: str) -> Recorded | None:
        """The trajectory `uid` with what is kept beside it; None when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        return found[0] if found else None

    def recorded(self, **filters: Unpack[Filters]) -> Iterator[Recorded]:
        """As `trajectories`, with what is kept beside each."""
        for page in self._pages(conditions(filters)):
            yield from page

    def open_uids(self) -> list[str]:
        """The running trajectories that were given a `session`: what a server goes on with after a restart."""
        table = schema.trajectories.c
        wanted = (table.status == Status.RUNNING, table.session.is_not(None))
        return self.read(lambda connection: list(connection.scalars(sa.select(table.uid).where(*wanted))))

    def count(self, **filters: Unpack[Filters]) -> int:
        """How many trajectories there are."""
        query = sa.select(sa.func.count()).select_from(schema.trajectories).where(*conditions(filters))
        return self.read(lambda connection: int(connection.execute(query).scalar_one()))

    def channels(self) -> list[str]:
        """The channels that something was recorded in, in alphabetical order."""
        column = schema.trajectories.c.channel
        return list(self.read(lambda connection: connection.scalars(sa.select(column).distinct().order_by(column))))

    def groups(self, channel: str, train_step: int | None = None) -> dict[str, list[str]]:
        """The uids of the trajectories that share a prompt, by `prompt_uid`, in the order they were begun."""
        table = schema.trajectories.c
        wanted = conditions({"channel": channel, "train_step": train_step})
        query = sa.select(table.prompt_uid, table.uid).where(*wanted).order_by(table.id)
        found: dict[str, list[str]] = {}
        for prompt_uid, uid in self.read(lambda connection: connection.execute(query).all()):
            found.setdefault(prompt_uid, []).append(uid)
        return found

    def lease(
        self, owner: str, count: int, channel: str, lease_s: float, min_version: int | None = None
    ) -> list[Leased]:
        """Up to `count` groups of `channel` that are ready, the first to become so first, for `owner` to train on.

        Nobody else gets them for `lease_s` seconds. When a group is due by its deadline, what still runs in it ends as
        timed out. A group all of whose steps are older than `min_version` becomes stale and is not handed out.
        """
        now = time.time()

        def taken(transaction: Transaction) -> list[groups.Key]:
            return groups.lease(transaction.connection, owner, count, channel, now + lease_s, now, min_version)

        keys = self._writer.submit_sync(taken)
        return self.read(lambda connection: reading.read_groups(connection, keys))

    def consume(self, owner: str, prompt_uids: Collection[str], train_step: int) -> None:
        """The groups were trained on at `train_step`: nobody gets them again. Raises `LeaseLost`, and changes nothing,
        when `owner` holds one of them no more. To say the same twice is fine."""
        self._change(lambda connection: groups.consume(connection, owner, prompt_uids, train_step))

    def release(self, owner: str, prompt_uids: Collection[str]) -> int:
        """Give back groups that were not trained on; returns how many `owner` held."""
        return self._change(lambda connection: groups.release(connection, owner, prompt_uids, time.time()))

    def renew(self, owner: str, lease_s: float) -> int:
        """Hold all that `owner` holds for `lease_s` seconds from now; returns how many groups."""
        return self._change(lambda connection: groups.renew(connection, owner, time.time() + lease_s))

    def reopen(self, owner: str, after_train_step: int) -> int:
        """For a run that goes back to an earlier step: what it consumed after that step, and what it holds, is ready
        again. Returns how many groups."""
        return self._change(lambda connection: groups.reopen(connection, owner, after_train_step, time.time()))

    def group_counts(self, channel: str | None = None) -> dict[str, float]:
        """How many groups are `waiting`, `ready`, `leased`, `consumed`, `stale` and `rejected` (`groups` says what each
        is), and `oldest_ready_s`, for how long the first of the ready ones has been so."""
        now = time.time()
        rows = self.read(lambda connection: connection.execute(groups.counting(channel, now)).all())
        return groups.counted(rows, now)

    def oldest_ready_version(self, channel: str | None = None) -> int | None:
        """The newest policy version in the group, of those that are ready, in which that is the lowest: how stale what
        waits for training is. None when nothing that has steps waits."""
        now = time.time()
        return self.read(lambda connection: groups.oldest_ready_version(connection, channel, now))

    def curate(
        self,
        trajectory_uid: str,
        step_index: int | None = None,
        *,
        trainable: bool | None = None,
        quality: Quality | None = None,
        tags: Sequence[str] | None = None,
        note: str | None = None,
    ) -> None:
        """Decide something about a trajectory or one of its steps; None leaves what was decided before.

        `trainable=False` takes the step, or every step of the trajectory, out of the loss; the trajectory's reward
        still counts in the statistics of its group. `quality="reject"` of a trajectory leaves it out of its group
        altogether. What was handed out already does not change. `trainable=True`, `quality=""`, `tags=()` and `note=""`
        take back.
        """
        curation.checked(quality)
        given = {"trainable": trainable, "quality": quality, "tags": tags, "note": note}
        said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if tags is not None:
            said["tags"] = tuple(tags)

        def decide(transaction: Transaction) -> None:
            known = transaction.of(trajectory_uid)
            if step_index is not None:
                transaction.has_step(trajectory_uid, step_index)
            connection = transaction.connection
            before = {one.step_index: one for one in curation.read(connection, [trajectory_uid])}
            nothing = Curation(trajectory_uid=trajectory_uid, step_index=step_index)
            curation.write(connection, replace(before.get(step_index, nothing), **said))
            transaction.touch(known.group)

        self._writer.submit_sync(decide, trajectory_uid)

    def curation(self, trajectory_uid: str) -> list[Curation]:
        """What was decided about a trajectory (first, with no `step_index`) and its steps."""
        return self.read(lambda connection: curation.read(connection, [trajectory_uid]))

    def add_feedback(
        self,
        trajectory_uid: str,
        kind: feedback.Kind,
        value: float | None = None,
        text: str = "",
        step_index: int | None = None,
        key: str | None = None,
    ) -> bool:
        """Keep what somebody said of a trajectory or a step of it, as `Feedback` tells. False, and nothing is kept,
        when there is feedback on it with this `key` already."""
        one = Feedback(trajectory_uid=trajectory_uid, kind=kind, value=value, text=text, step_index=step_index, key=key)

        def add(transaction: Transaction) -> bool:
            transaction.of(trajectory_uid)
            if step_index is not None:
                transaction.has_step(trajectory_uid, step_index)
            return feedback.write(transaction.connection, one)

        return self._writer.submit_sync(add, trajectory_uid)

    def feedback(self, trajectory_uid: str) -> list[Feedback]:
        """What was said of a trajectory and its steps, in the order it came."""
        return self.read(lambda connection: feedback.read(connection, [trajectory_uid]))

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
        condition = prunable(time.time() - older_than_s, channel, states, PRUNED_AT_ONCE)
        pruned = 0
        while count := self._writer.submit_sync(lambda transaction: transaction.discard(condition)):
            pruned += count
        if vacuum:
            reclaim(self._engine, self.where)
        return pruned

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

    def _pages(
        self, wanted: Sequence[sa.ColumnElement[bool]], limit: int | None = None, newest_first: bool = False
    ) -> Iterator[list[Recorded]]:
        order = schema.trajectories.c.id
        query = schema.trajectories.select().where(*wanted).order_by(order.desc() if newest_first else order)
        left, last = limit, None
        while left is None or left > 0:
            after = () if last is None else ((order < last) if newest_first else (order > last),)
            page = self._page(query.where(*after).limit(PAGE if left is None else min(PAGE, left)))
            if not page:
                return
            last = page[-1].id
            left = None if left is None else left - len(page)
            yield page

    def _page(self, query: sa.Select[Any]) -> list[Recorded]:
        return self.read(lambda connection: reading.read(connection, query))


def _appended(step: Step, channel: str) -> Operation[None]:
    row = step_row(step)
    task = Task(id=step.prompt_uid, prompt=step.messages)
    unbegun = Trajectory(uid=step.trajectory_uid, prompt_uid=step.prompt_uid, task=task, status=Status.RUNNING)
    return lambda transaction: transaction.append(row, lambda: _new_row(unbegun, channel, None))


def _begun_row(uid: str, prompt_uid: str, task: Task, channel: str, session: Mapping[str, Any] | None) -> Row:
    begun = Trajectory(uid=uid, prompt_uid=prompt_uid, task=task, status=Status.RUNNING)
    kept = None if session is None else to_json(session, f"session of trajectory {uid!r}")
    return {**_new_row(begun, channel, None), "session": kept}


def _new_row(trajectory: Trajectory, channel: str, train_step: int | None) -> Row:
    now = time.time()
    return {
        **trajectory_row(trajectory),
        "channel": channel,
        "train_step": train_step,
        "created_at": now,
        "ended_at": None if trajectory.status is Status.RUNNING else now,
        "session": None,
    }
