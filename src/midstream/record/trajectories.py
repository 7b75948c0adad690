"""Trajectories in the store: they begin, take steps, and end; and are read back, a few in memory at a time."""

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
from midstream.record.branches import Branches, counting_branches
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
"""Trajectories a streaming read holds at once."""


@dataclass(eq=False)
class Trajectories:
    """The trajectories of a database. Of those with a `session`, `servers` says which this process holds."""

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
        """Record that a trajectory runs; one with the same uid is replaced, with its steps.

        Returns at once. It is on disk before any later call is acknowledged; if it cannot be, a later call raises.

        With a `group_size` or a `deadline` (seconds since 1970) the trajectories of its prompt in its channel are a
        group that `Groups.lease` hands out; the first trajectory that gives them decides for all. `session` is kept as
        it is (JSON) for the process that continues the trajectory after a restart.
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
        """`begin` that returns when the trajectory is on disk. Raises `AlreadyEnded` for one that has, `HeldElsewhere`
        when another server was quicker with this uid, and `GroupClosed` when it would come too late to be trained on
        with its group. `joins` False saves looking: the prompt is known to be new."""
        row, server = self._begun(trajectory_uid, prompt_uid, task, channel, session), self.servers.own

        def begin(transaction: Transaction) -> None:
            batch = transaction.batch(TrajectoryBatch)
            batch.must_run(trajectory_uid, server)
            batch.begin(row, group_size, deadline, joins=joins)

        await self.database.submit(begin, trajectory_uid)

    async def amend(self, trajectory_uid: str, *, task: Task, session: Mapping[str, Any] | None) -> None:
        """Replace the `task` and `session` given to `begin`; returns when it is on disk. Raises as `finish`."""
        server, trajectory = self.servers.own, Trajectory(uid=trajectory_uid, prompt_uid="", task=task)
        kept = None if session is None else to_json(session, f"session of trajectory {trajectory_uid!r}")
        table = schema.trajectories
        values = {"task": trajectory_row(trajectory)["task"], "session": kept}
        changed = table.update().where(table.c.uid == trajectory_uid).values(values)

        def amend(transaction: Transaction) -> None:
            transaction.batch(TrajectoryBatch).must_run(trajectory_uid, server)
            transaction.connection.execute(changed)

        await self.database.submit(amend, trajectory_uid)

    async def append(self, step: Step, channel: str = "train") -> None:
        """Record `step`; returns when it is on disk. A step with the same trajectory and index is replaced.

        A step whose trajectory has ended is kept beside the others, with `late` in its metadata and not trainable.
        `channel` counts only for a trajectory that was never begun: it is begun here, with an empty task. Raises
        `HeldElsewhere`, and writes nothing, when another server has taken the trajectory over.
        """
        await self.append_future(step, channel)

    def append_future(self, step: Step, channel: str = "train") -> asyncio.Future[bool]:
        """`append` as a future, which stays observable when its caller is cancelled. Its result is False when the
        trajectory had ended."""
        return self.database.submit_future(_appended(step, channel, self.servers.own), step.trajectory_uid)

    def append_sync(self, step: Step, channel: str = "train") -> None:
        """`append` for code that is not async."""
        self.database.write(_appended(step, channel, self.servers.own), step.trajectory_uid)

    async def update_step(self, step: Step) -> None:
        """Replace a recorded step (its reward, `is_last` or metadata changed); returns when it is on disk. Raises as
        `finish`: a trajectory that has ended stays as it is."""
        row, server = step_row(step), self.servers.own

        def update(transaction: Transaction) -> None:
            batch = transaction.batch(TrajectoryBatch)
            batch.must_run(step.trajectory_uid, server)
            batch.step(row)

        await self.database.submit(update, step.trajectory_uid)

    async def finish(self, trajectory: Trajectory, channel: str = "train") -> None:
        """Record how `trajectory` ended, and its steps with their rewards; returns when it is on disk.

        Steps recorded before that `trajectory` does not hold are kept. `channel` counts only for a trajectory that was
        never begun. Raises `AlreadyEnded`, and changes nothing, when it has ended since it was begun; `HeldElsewhere`
        when another server has taken it over.
        """
        row, server = _new_row(trajectory, channel, None), self.servers.own
        step_rows = [step_row(step) for step in trajectory.steps]

        def finish(transaction: Transaction) -> None:
            transaction.batch(TrajectoryBatch).finish(row, step_rows, server)

        await self.database.submit(finish, trajectory.uid)

    async def rescore(self, trajectory: Trajectory) -> None:
        """Replace the rewards of a trajectory that has ended and of its steps, its status and its metadata; returns
        when it is on disk. For rewards that need the whole group, and so come after its end."""
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

    def discard_from(self, train_step: int) -> None:
        """Delete every trajectory recorded at or after `train_step`, with its steps."""
        late = schema.trajectories.c.train_step >= train_step
        self.database.write(lambda transaction: transaction.batch(TrajectoryBatch).discard(late))

    def get(self, uid: str) -> Trajectory:
        """The trajectory `uid` with its steps; `RunError` when there is none."""
        found = self.find(uid)
        if found is None:
            raise RunError(
                f"no trajectory '{uid}' in '{self.database.where}'", "'midstream show RUN' lists those that are there"
            )
        return found.trajectory

    def find(self, uid: str) -> Recorded | None:
        """The trajectory `uid` with what is kept beside it; None when there is none."""
        found = self._page(schema.trajectories.select().where(schema.trajectories.c.uid == uid))
        return found[0] if found else None

    def iterate(
        self, *, limit: int | None = None, newest_first: bool = False, **filters: Unpack[Filters]
    ) -> Iterator[Trajectory]:
        """Trajectories in the order they were begun, a few in memory at a time.

        Holds no lock between pages, so what is written meanwhile may be seen or not.
        """
        for page in self._pages(conditions(filters), limit, newest_first):
            for recorded in page:
                yield recorded.trajectory

    def recorded(self, **filters: Unpack[Filters]) -> Iterator[Recorded]:
        """As `iterate`, with what is kept beside each."""
        for page in self._pages(conditions(filters)):
            yield from page

    def summaries(
        self, *, limit: int, before: int | None = None, newest_first: bool = True, **filters: Unpack[Filters]
    ) -> list[Summary]:
        """One page of at most `limit` trajectories without their steps; `before` is the `id` of the page before's
        last."""
        order = schema.trajectories.c.id
        wanted = conditions(filters)
        if before is not None:
            wanted.append(order < before if newest_first else order > before)
        in_order = order.desc() if newest_first else order
        return self.database.read(lambda connection: loading.summaries(connection, wanted, in_order, limit))

    def uids_starting(self, start: str, limit: int) -> list[str]:
        """At most `limit` uids that begin with `start`, in alphabetical order; `start` itself is the first."""
        column = schema.trajectories.c.uid
        query = sa.select(column).where(sa.func.substr(column, 1, len(start)) == start).order_by(column).limit(limit)
        return list(self.database.read(lambda connection: connection.scalars(query)))

    def open_uids(self) -> list[str]:
        """The running trajectories that this server holds; in a process that is no server, all with a `session`."""
        table, own = schema.trajectories.c, self.servers.own
        mine = table.session.is_not(None) if own is None else table.server == own
        wanted = (table.status == Status.RUNNING, mine)
        return self.database.read(lambda connection: list(connection.scalars(sa.select(table.uid).where(*wanted))))

    def count(self, **filters: Unpack[Filters]) -> int:
        """How many trajectories there are."""
        query = sa.select(sa.func.count()).select_from(schema.trajectories).where(*conditions(filters))
        return self.database.read(lambda connection: int(connection.execute(query).scalar_one()))

    def branches(self, channel: str | None = None) -> list[Branches]:
        """Cost of calls that could not continue recorded tokens, by cause, the most expensive first."""
        rows = self.database.read(lambda connection: connection.execute(counting_branches(channel)).all())
        return [Branches(cause, calls, int(tokens)) for cause, calls, tokens in rows]

    def channels(self) -> list[str]:
        """The channels that something was recorded in, in alphabetical order."""
        query = sa.select(schema.trajectories.c.channel).distinct().order_by(schema.trajectories.c.channel)
        return list(self.database.read(lambda connection: connection.scalars(query)))

    def uids_by_prompt(self, channel: str, train_step: int | None = None) -> dict[str, list[str]]:
        """The uids of the trajectories that share a prompt, by `prompt_uid`, in the order they were begun."""
        table = schema.trajectories.c
        wanted = conditions({"channel": channel, "train_step": train_step})
        query = sa.select(table.prompt_uid, table.uid).where(*wanted).order_by(table.id)
        found: dict[str, list[str]] = {}
        for prompt_uid, uid in self.database.read(lambda connection: connection.execute(query).all()):
            found.setdefault(prompt_uid, []).append(uid)
        return found

    def _begun(
        self, uid: str, prompt_uid: str, task: Task, channel: str, session: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        begun = Trajectory(uid=uid, prompt_uid=prompt_uid, task=task, status=Status.RUNNING)
        row = _new_row(begun, channel, None)
        if session is None:
            return row
        return {**row, "session": to_json(session, f"session of trajectory {uid!r}"), "server": self.servers.own}

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
        return self.database.read(lambda connection: loading.read(connection, query))


def adopt(connection: sa.Connection, server: str) -> list[str]:
    """Give the running trajectories with a `session` that no living server holds to `server`; returns their uids."""
    from midstream.store.servers import table as servers

    held = schema.trajectories.c
    gone = sa.or_(held.server.is_(None), held.server.not_in(sa.select(servers.c.id)))
    orphans = (held.status == Status.RUNNING, held.session.is_not(None), gone)
    taken = schema.trajectories.update().where(*orphans).values(server=server).returning(held.uid)
    return list(connection.scalars(taken))


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
