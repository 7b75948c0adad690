"""Logs the tool calls and environment actions of running attempts, before and after each.

After its process died, an attempt runs again from its start. Finished actions are answered from the log, so none is
carried out twice. The rows of an attempt are deleted when it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Integer, MetaData, String, Table, Text

from midstream.core.errors import ServiceError
from midstream.record.replay import Diverged
from midstream.store.database import Database
from midstream.store.engine import INSERT
from midstream.store.exact_json import from_json, to_json
from midstream.store.schema import Schema
from midstream.store.transaction import Transaction

metadata = MetaData()
actions = Table(
    "attempt_actions",
    metadata,
    Column("trajectory_uid", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("number", Integer, nullable=False),  # in the order they began
    Column("request", Text, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("result", Text, nullable=False),
)
SCHEMA = Schema("attempts", metadata)


class ActionInDoubt(ServiceError):
    """The process died during an action that must not be repeated; its outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of an attempt. `request` and `result` are JSON texts; `result` is empty until the action has ended."""

    key: str
    number: int
    request: str
    done: bool = False
    result: str = ""


class ActionLog:
    """The actions of one attempt. `known` are those recorded before its process died."""

    def __init__(self, database: Database, trajectory_uid: str, known: Sequence[Action] = ()) -> None:
        self._database, self._uid = database, trajectory_uid
        self._actions = {action.key: action for action in known}
        self._recorded = set(self._actions)
        self._unkeyed = 0
        self.diverged = ""
        """How the attempt diverged; empty if it has not."""
        self.answered = 0
        """Number of actions answered from the log so far."""
        self.in_doubt = False
        """Whether an action is in doubt and not settled."""

    async def run(
        self,
        request: Mapping[str, Any],
        act: Callable[[], Awaitable[Any]],
        *,
        key: str = "",
        repeatable: bool = False,
        rebuild: Callable[[Any, Any], bool] | None = None,
    ) -> Any:
        """Carry out `act` once and return its result (JSON data), or return its recorded result.

        `key` names the action within the attempt; actions without a key are numbered. The intent is on disk before
        `act` runs, unless the action is `repeatable`, and the result before this returns. With `rebuild` a recorded
        action is carried out again to restore its state; `rebuild(before, now)` compares the results.

        Raises `ActionInDoubt` for an action that is not `repeatable` and was interrupted, and `Diverged` if another
        action is recorded in its place."""
        if self.diverged:
            raise Diverged(self.diverged)
        if not key:
            key, self._unkeyed = f"#{self._unkeyed}", self._unkeyed + 1
        self._recorded.discard(key)
        written = to_json(dict(request), f"an action of trajectory '{self._uid}'")
        known = self._actions.get(key)
        if known is not None and known.request != written:
            raise self._divergence(f"action {key}: it was {known.request[:200]}, and now is {written[:200]}")
        if known is not None and known.done:
            self.answered += 1
            result = from_json(known.result)
            if rebuild is not None and not rebuild(result, await act()):
                raise self._divergence(f"action {key}: carried out again, it returned something else")
            return result
        if known is not None and not repeatable:
            self.in_doubt = True
            raise ActionInDoubt(f"the process died during this action, and its outcome is not known: {written[:400]}")
        action = known or Action(key, 1 + max((one.number for one in self._actions.values()), default=-1), written)
        self._actions[key] = action
        if known is None and not repeatable:
            await self._write(action)
        return await self._finish(action, await act())

    async def settle(self, key: str, result: Any) -> Any:
        """Record `result` for an action in doubt, and return it. An empty `key` means the latest action without a
        key."""
        key = key or f"#{self._unkeyed - 1}"
        self.in_doubt = False
        return await self._finish(self._actions[key], result)

    def results(self, *, keyed: bool = False) -> list[Any]:
        """Return the results of finished actions, in the order in which they began; with `keyed` only of those with a
        key."""
        in_order = sorted(self._actions.values(), key=lambda action: action.number)
        return [from_json(one.result) for one in in_order if one.done and not (keyed and one.key.startswith("#"))]

    @property
    def names(self) -> list[str]:
        """Return the keys of the actions, in the order in which they began."""
        return sorted(self._actions, key=lambda key: self._actions[key].number)

    def start_again(self, reason: str) -> Diverged:
        """Discard the recorded attempt for `reason`; returns the error to raise."""
        return self._divergence(reason)

    def check_complete(self) -> None:
        """Raise `Diverged` if the attempt ended without repeating a recorded action without a key."""
        left = sorted(key for key in self._recorded if key.startswith("#"))
        if left and not self.diverged:
            raise self._divergence(f"action {left[0]} was not carried out again")

    def _divergence(self, problem: str) -> Diverged:
        self.diverged = problem
        return Diverged(problem)

    async def _finish(self, action: Action, result: Any) -> Any:
        done = replace(action, done=True, result=to_json(result, f"result of action {action.key}"))
        self._actions[action.key] = done
        await self._write(done)
        return from_json(done.result)

    async def _write(self, action: Action) -> None:
        row = {"trajectory_uid": self._uid, **{name: getattr(action, name) for name in Action.__slots__}}

        def write(transaction: Transaction) -> None:
            connection = transaction.connection
            statement = INSERT[connection.dialect.name](actions)
            changed = {"done": statement.excluded.done, "result": statement.excluded.result}
            upsert = statement.on_conflict_do_update(index_elements=["trajectory_uid", "key"], set_=changed)
            connection.execute(upsert, [row])

        await self._database.submit(write)


def load_actions(connection: sa.Connection, trajectory_uid: str) -> list[Action]:
    """Return the recorded actions of an attempt, in the order in which they began."""
    of_it = actions.select().where(actions.c.trajectory_uid == trajectory_uid).order_by(actions.c.number)
    return [Action(row.key, row.number, row.request, row.done, row.result) for row in connection.execute(of_it)]


def has_actions(database: Database) -> bool:
    """Whether the database has actions of any attempt."""

    def found(connection: sa.Connection) -> bool:
        if not sa.inspect(connection).has_table(actions.name):
            return False
        return connection.execute(sa.select(actions.c.key).limit(1)).first() is not None

    return database.read(found)


def attempts_with_actions(connection: sa.Connection) -> list[str]:
    """Return the uids of the attempts that have recorded actions."""
    return list(connection.scalars(sa.select(actions.c.trajectory_uid).distinct()))


def delete_actions(connection: sa.Connection, trajectory_uid: str) -> None:
    """Delete the recorded actions of an attempt."""
    connection.execute(actions.delete().where(actions.c.trajectory_uid == trajectory_uid))
