"""Recording: trajectories begin, take steps, and end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from midstream.core import clock
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import schema
from midstream.record.access import Access
from midstream.record.exact_json import to_json
from midstream.record.rows import Row, step_row, trajectory_row
from midstream.record.transaction import Transaction
from midstream.record.writer import Operation


class Recording(Access):
    """What is written as it happens."""

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
        row = self._begun(trajectory_uid, prompt_uid, task, channel, session) | {"train_step": train_step}
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
        joins: bool = True,
    ) -> None:
        """`begin` for who must know: returns when it is on disk, and raises when it cannot be, such as `AlreadyEnded`
        for one that has, `HeldElsewhere` when another server was quicker with this uid, and `GroupClosed` when it would
        come too late to be trained on with its group. `joins` False saves looking: the prompt is known to be new."""
        row, server = self._begun(trajectory_uid, prompt_uid, task, channel, session), self.server

        def begin(transaction: Transaction) -> None:
            transaction.must_run(trajectory_uid, server)
            transaction.begin(row, group_size, deadline, joins=joins)

        await self._writer.submit(begin, trajectory_uid)

    async def amend(self, trajectory_uid: str, *, task: Task, session: Mapping[str, Any] | None) -> None:
        """Replace what `begin` was given as `task` and `session`; returns when it is on disk. Raises as `finish`."""
        server, trajectory = self.server, Trajectory(uid=trajectory_uid, prompt_uid="", task=task)
        kept = None if session is None else to_json(session, f"session of trajectory {trajectory_uid!r}")
        table = schema.trajectories
        values = {"task": trajectory_row(trajectory)["task"], "session": kept}
        changed = table.update().where(table.c.uid == trajectory_uid).values(values)

        def amend(transaction: Transaction) -> None:
            transaction.must_run(trajectory_uid, server)
            transaction.connection.execute(changed)

        await self._writer.submit(amend, trajectory_uid)

    async def append(self, step: Step, channel: str = "train") -> None:
        """Record `step`; returns when it is on disk. The step with the same trajectory and index is replaced.

        A step whose trajectory has ended is kept beside the others, with `late` in its metadata and not trainable.
        `channel` counts only for a trajectory that was never begun: it is begun here, with an empty task. Raises
        `HeldElsewhere`, and writes nothing, when another server has taken the trajectory over.
        """
        await self.appending(step, channel)

    def appending(self, step: Step, channel: str = "train") -> asyncio.Future[bool]:
        """`append` for who must hear of it although they were cancelled: done when the step is on disk; False when its
        trajectory had ended."""
        return self._writer.write(_appended(step, channel, self.server), step.trajectory_uid)

    def append_sync(self, step: Step, channel: str = "train") -> None:
        """`append` for code that is not async."""
        self._writer.submit_sync(_appended(step, channel, self.server), step.trajectory_uid)

    async def update_step(self, step: Step) -> None:
        """Replace a recorded step (its reward, `is_last`, metadata changed); returns when it is on disk. Raises as
        `finish` does: what a trajectory ended with stands."""
        row, server = step_row(step), self.server

        def update(transaction: Transaction) -> None:
            transaction.must_run(step.trajectory_uid, server)
            transaction.step(row)

        await self._writer.submit(update, step.trajectory_uid)

    async def finish(self, trajectory: Trajectory, channel: str = "train") -> None:
        """Record how `trajectory` ended, and its steps with their rewards; returns when it is on disk.

        Steps recorded before that `trajectory` does not hold are kept. `channel` counts only for a trajectory that was
        never begun. Raises `AlreadyEnded`, and changes nothing, when it has ended since it was begun; `HeldElsewhere`
        when another server has taken it over.
        """
        row, server = _new_row(trajectory, channel, None), self.server
        step_rows = [step_row(step) for step in trajectory.steps]
        await self._writer.submit(lambda transaction: transaction.finish(row, step_rows, server), trajectory.uid)

    async def rescore(self, trajectory: Trajectory) -> None:
        """Replace the rewards of a trajectory that has ended, its steps' too, and what it says of a failure of them;
        returns when it is on disk. For rewards that need the whole group, and so come after the end."""
        table, steps = schema.trajectories, schema.steps
        row = trajectory_row(trajectory)
        changed = {name: row[name] for name in ("reward", "rewards", "status", "error", "metadata")}
        rewards = [(step.step_index, step.reward) for step in trajectory.steps]

        def rescore(transaction: Transaction) -> None:
            run = transaction.connection.execute
            run(table.update().where(table.c.uid == trajectory.uid).values(changed))
            for index, reward in rewards:
                place = (steps.c.trajectory_uid == trajectory.uid, steps.c.step_index == index)
                run(steps.update().where(*place).values(reward=reward))

        await self._writer.submit(rescore, trajectory.uid)

    def discard_from(self, train_step: int) -> None:
        """Delete every trajectory recorded at or after `train_step`, with its steps."""
        late = schema.trajectories.c.train_step >= train_step
        self._writer.submit_sync(lambda transaction: transaction.discard(late))

    def _begun(
        self, uid: str, prompt_uid: str, task: Task, channel: str, session: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        begun = Trajectory(uid=uid, prompt_uid=prompt_uid, task=task, status=Status.RUNNING)
        row = _new_row(begun, channel, None)
        if session is None:
            return row
        return {**row, "session": to_json(session, f"session of trajectory {uid!r}"), "server": self.server}


def _appended(step: Step, channel: str, server: str | None) -> Operation[bool]:
    row = step_row(step)
    task = Task(id=step.prompt_uid, prompt=step.messages)
    unbegun = Trajectory(uid=step.trajectory_uid, prompt_uid=step.prompt_uid, task=task, status=Status.RUNNING)
    return lambda transaction: transaction.append(row, lambda: _new_row(unbegun, channel, None), server)


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
