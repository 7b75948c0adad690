"""Trajectories in the store: begin, append steps, finish; read back a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import sqlalchemy as sa

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import loading, schema
from midstream.record.branches import Branches, branches_query
from midstream.record.filters import Filters, conditions
from midstream.record.loading import Recorded, Summary
from midstream.record.rows import Row, step_row, trajectory_row
from midstream.record.trajectory_batch import TrajectoryBatch
from midstream.store.database import Database
from midstream.store.exact_json import to_json
from midstream.store.servers import Servers
from midstream.store.transaction import Transaction
from midstream.store.writer import Operation

PAGE = 64
"""Trajectories in memory at once during a streaming read."""


@dataclass(eq=False)
class Trajectories:
    """The trajectories of a database. `servers` determines which of those with a `session` this process holds."""

    database: Database
    servers: Servers

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
        """Record a running trajectory, replacing any with the same uid and its steps.

        Returns at once. It is on disk before any later call is acknowledged; a failure is raised by a later call.

        With a `group_size` or a `deadline` (seconds since 1970) the trajectories of its prompt in its channel form a
        group for `Groups.lease`; the first trajectory that sets them decides for all. `session` (JSON) is stored for
        the process that continues the trajectory after a restart.
        """
        row = self._begun(trajectory_uid, prompt_uid, task, channel, session) | {"train_step": train_step}

        def begin(transaction: Transaction) -> None:
            transaction.batch(TrajectoryBatch).begin(row, group_size, deadline)

        self.database.post(begin, trajectory_uid)

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
        joins: bool = True,
    ) -> None:
        """`begin`, but returns when the trajectory is on disk. Raises `AlreadyEnded` if it has ended, `HeldElsewhere`
        if another server has begun this uid, and `GroupClosed` if it would be too late to be trained on with its group.
        `joins` False skips the group check for a prompt known to be new."""
        row, server = self._begun(trajectory_uid, prompt_uid, task, channel, session), self.servers.own

        def begin(transaction: Transaction) -> None:
            batch = transaction.batch(TrajectoryBatch)
            batch.require_running(trajectory_uid, server)
            batch.begin(row, group_size, deadline, joins=joins)

        await self.database.submit(begin, trajectory_uid)

    async def amend(self, trajectory_uid: str, *, task: Task, session: Mapping[str, Any] | None) -> None:
        """Replace the `task` and `session` given to `begin`; returns when it is on disk. Raises like `finish`."""
        server, trajectory = self.servers.own, Trajectory(uid=trajectory_uid, prompt_uid="", task=task)
        encoded = None if session is None else to_json(session, f"session of trajectory {trajectory_uid!r}")
        table = schema.trajectories
        values = {"task": trajectory_row(trajectory)["task"], "session": encoded}
        changed = table.update().where(table.c.uid == trajectory_uid).values(values)

        def amend(transaction: Transaction) -> None:
            transaction.batch(TrajectoryBatch).require_running(trajectory_uid, server)
            transaction.connection.execute(changed)

        await self.database.submit(amend, trajectory_uid)

    async def append(self, step: Step, channel: str = "train") -> None:
        """Record `step`; returns when it is on disk. Replaces a step with the same trajectory and index.

        A step whose trajectory has ended is stored with `late` in its metadata, and is not trainable. `channel` only
        applies if the trajectory was never begun: then it is begun here, with an empty task. Raises `HeldElsewhere`,
        and writes nothing, if another server has taken over the trajectory.
        """
        await self.append_future(step, channel)

    def append_future(self, step: Step, channel: str = "train") -> asyncio.Future[bool]:
        """`append` as a future, which stays observable when its caller is cancelled. Its result is False if the
        trajectory had ended."""
        return self.database.submit_future(_appended(step, channel, self.servers.own), step.trajectory_uid)

    def append_sync(self, step: Step, channel: str = "train") -> None:
        """`append` for code that is not async."""
        self.database.write(_appended(step, channel, self.servers.own), step.trajectory_uid)

    async def update_step(self, step: Step) -> None:
        """Replace a recorded step (changed reward, `is_last` or metadata); returns when it is on disk. Raises like
        `finish`: an ended trajectory does not change."""
        row, server = step_row(step), self.servers.own

        def update(transaction: Transaction) -> None:
            batch = transaction.batch(TrajectoryBatch)
            batch.require_running(step.trajectory_uid, server)
            batch.step(row)

        await self.database.submit(update, step.trajectory_uid)

    async def finish(
        self, trajectory: Trajectory, channel: str = "train", *, also: Operation[None] | None = None
    ) -> None:
        """Record the ending of `trajectory`, and its steps with their rewards; returns when it is on disk.

        Recorded steps that `trajectory` lacks are kept. `channel` only applies if the trajectory was never begun.
        `also` is written in the same transaction.
        Raises `AlreadyEnded`, and changes nothing, if it has ended since it was begun; `HeldElsewhere` if another
        server has taken it over.
        """
        row, server = _new_row(trajectory, channel, None), self.servers.own
        step_rows = [step_row(step) for step in trajectory.steps]

        def finish(transaction: Transaction) -> None:
            transaction.batch(TrajectoryBatch).finish(row, step_rows, server)
            if also is not None:
                also(transaction)

        await self.database.submit(finish, trajectory.uid)

    async def rescore(self, trajectory: Trajectory) -> None:
        """Replace the rewards of an ended trajectory and its steps, its status and its metadata; returns when it is on
        disk. For rewards that need the whole group."""
        table, steps = schema.trajectories, schema.steps
        row = trajectory_row(trajectory)
        changed = {name: row[name] for name in ("reward", "rewards", "status", "error", "metadata")}

        def rescore(transaction: Transaction) -> None:
            run = transaction.connection.execute
            run(table.update().where(table.c.uid == trajectory.uid).values(changed))
            for step in trajectory.steps:
                place = (steps.c.trajectory_uid == trajectory.uid, steps.c.step_index == step.step_index)
                run(steps.update().where(*place).values(reward=step.reward))

        await self.database.submit(rescore, trajectory.uid)

    def discard_from(self, train_step: int, *, newer_than: int | None = None) -> None:
        """Delete every trajectory recorded at or after `train_step`, with its steps. With `newer_than`, those that no
        later `policy_version` sampled are kept."""
        late = schema.trajectories.c.train_step >= train_step
        if newer_than is not None:
            steps = schema.steps.c
            of_it = (steps.trajectory_uid == schema.trajectories.c.uid, steps.policy_version > newer_than)
            late = late & sa.exists().where(*of_it)
        self.database.write(lambda transaction: transaction.batch(TrajectoryBatch).discard(late))

    def get(self, uid: str) -> Trajectory:
        """Return the trajectory `uid` with its steps; raises `RunError` if it does not exist."""
        found = self.find(uid)
        if found is None:
            raise RunError(
                f"no trajectory '{uid}' in '{self.database.where}'", "'midstream show RUN' lists existing ones"
            )
        return found.trajectory

    def find(self, uid: str) -> Recorded | None:
        """Return the trajectory `uid` with its other columns; None if it does not exist."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        return found[0] if found else None

    def iterate(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Trajectory]:
        """Yield trajectories in the order they were begun, a few in memory at a time.

        Holds no lock between pages: concurrent writes may or may not be seen.
        """
        for page in self._pages(conditions(filters), limit, newest_first):
            for recorded in page:
                yield recorded.trajectory

    def recorded(self, **filters: Unpack[Filters]) -> Iterator[Recorded]:
        """Like `iterate`, with the other columns of each."""
        for page in self._pages(conditions(filters)):
            yield from page

    def summaries(
        self, *, limit: int, before: int | None = None, newest_first: bool = True, **filters: Unpack[Filters]
    ) -> list[Summary]:
        """Return one page of at most `limit` trajectories without their steps; `before` is the last `id` of the page
        before."""
        order = schema.trajectories.c.id
        matching = conditions(filters)
        if before is not None:
            matching.append(order < before if newest_first else order > before)
        in_order = order.desc() if newest_first else order
        return self.database.read(lambda connection: loading.summaries(connection, matching, in_order, limit))

    def uids_starting(self, start: str, limit: int) -> list[str]:
        """Return at most `limit` uids that start with `start`, in alphabetical order; `start` itself comes first."""
        column = schema.trajectories.c.uid
        query = sa.select(column).where(sa.func.substr(column, 1, len(start)) == start).order_by(column).limit(limit)
        return list(self.database.read(lambda connection: connection.scalars(query)))

    def open_uids(self) -> list[str]:
        """Return the running trajectories that this server holds; in a process that is no server, all with a
        `session`."""
        table, own = schema.trajectories.c, self.servers.own
        mine = table.session.is_not(None) if own is None else table.server == own
        running = (table.status == Status.RUNNING, mine)
        return self.database.read(lambda connection: list(connection.scalars(sa.select(table.uid).where(*running))))

    def count(self, **filters: Unpack[Filters]) -> int:
        """Return the number of trajectories."""
        query = sa.select(sa.func.count()).select_from(schema.trajectories).where(*conditions(filters))
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def branches(self, channel: str | None = None) -> list[Branches]:
        """Return the cost of calls that could not continue recorded tokens, by cause, the most expensive first."""
        rows = self.database.read(lambda connection: connection.execute(branches_query(channel)).all())
        return [Branches(cause, calls, int(tokens)) for cause, calls, tokens in rows]

    def channels(self) -> list[str]:
        """Return the channels with recorded data, in alphabetical order."""
        query = sa.select(schema.trajectories.c.channel).distinct().order_by(schema.trajectories.c.channel)
        return list(self.database.read(lambda connection: connection.scalars(query)))

    def _begun(
        self, uid: str, prompt_uid: str, task: Task, channel: str, session: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        begun = Trajectory(uid=uid, prompt_uid=prompt_uid, task=task, status=Status.RUNNING)
        row = _new_row(begun, channel, None)
        if session is None:
            return row
        return {**row, "session": to_json(session, f"session of trajectory {uid!r}"), "server": self.servers.own}

    def _pages(
        self, matching: Sequence[sa.ColumnElement[bool]], limit: int | None = None, newest_first: bool = False
    ) -> Iterator[list[Recorded]]:
        order = schema.trajectories.c.id
        query = schema.trajectories.select().where(*matching).order_by(order.desc() if newest_first else order)
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
        return self.database.read(lambda connection: loading.read(connection, query))


def adopt(connection: sa.Connection, server: str) -> list[str]:
    """Assign the running trajectories with a `session` that no living server holds to `server`; returns their uids."""
    from midstream.store.servers import table as servers

    table = schema.trajectories.c
    unheld = sa.or_(table.server.is_(None), table.server.not_in(sa.select(servers.c.id)))
    orphans = (table.status == Status.RUNNING, table.session.is_not(None), unheld)
    adopted = schema.trajectories.update().where(*orphans).values(server=server).returning(table.uid)
    return list(connection.scalars(adopted))


def _appended(step: Step, channel: str, server: str | None) -> Operation[bool]:
    row = step_row(step)
    task = Task(id=step.prompt_uid, prompt=step.messages)
    unbegun = Trajectory(uid=step.trajectory_uid, prompt_uid=step.prompt_uid, task=task, status=Status.RUNNING)

    def append(transaction: Transaction) -> bool:
        return transaction.batch(TrajectoryBatch).append(row, lambda: _new_row(unbegun, channel, None), server)

    return append


def _new_row(trajectory: Trajectory, channel: str, train_step: int | None) -> Row:
    now = clock.time()
    return {
        **trajectory_row(trajectory),
        "channel": channel,
        "train_step": train_step,
        "created_at": now,
        "ended_at": None if trajectory.status is Status.RUNNING else now,
        "session": None,
        "server": None,
    }
