"""What running attempts do besides model calls: tool calls and actions in an environment, written before and after.

An attempt whose process died runs again from its start. The log answers what is done, so nothing is done twice. The
rows of an attempt are deleted when it ends.
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
    """The process died during an action that must not be repeated, so its outcome is unknown."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of an attempt. `request` and `result` are JSON texts; `result` is empty until it is done."""

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
        """How the attempt diverged; empty while it has not."""
        self.answered = 0
        """Actions answered from the log so far."""

    async def run(
        self,
        request: Mapping[str, Any],
        act: Callable[[], Awaitable[Any]],
        *,
        key: str = "",
        repeatable: bool = False,
        rebuild: Callable[[Any, Any], bool] | None = None,
    ) -> Any:
        """Carry out `act` once and return its result (JSON data), or return what it returned before.

        `key` names the action within the attempt; without one it is the n-th of those. Its intent is on disk before
        `act` runs unless it is `repeatable`, and its result before this returns. With `rebuild` a recorded action is
        carried out again for the sake of the state it leaves; `rebuild(before, now)` compares the results.

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
            raise ActionInDoubt(f"the process died during this action, and its outcome is not known: {written[:400]}")
        action = known or Action(key, len(self._actions), written)
        self._actions[key] = action
        if known is None and not repeatable:
            await self._write(action)
        return await self._finish(action, await act())

    async def settle(self, key: str, result: Any) -> Any:
        """Record `result` for an action in doubt, and return it. An empty `key` is the latest action without one."""
        key = key or f"#{self._unkeyed - 1}"
        return await self._finish(self._actions[key], result)

    def results(self) -> list[Any]:
        """Results of the actions that are done, in the order they began."""
        in_order = sorted(self._actions.values(), key=lambda action: action.number)
        return [from_json(action.result) for action in in_order if action.done]

    @property
    def names(self) -> list[str]:
        """Keys of the actions, in the order they began."""
        return sorted(self._actions, key=lambda key: self._actions[key].number)

    def start_again(self, reason: str) -> Diverged:
        """Give up the recorded attempt for `reason`; returns the error to raise."""
        return self._divergence(reason)

    def check_complete(self) -> None:
        """Raise `Diverged` if the attempt ended without an action without a key that is recorded."""
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
    """Return the recorded actions of an attempt, in the order they began."""
    of_it = actions.select().where(actions.c.trajectory_uid == trajectory_uid).order_by(actions.c.number)
    return [Action(row.key, row.number, row.request, row.done, row.result) for row in connection.execute(of_it)]


def delete_actions(connection: sa.Connection, trajectory_uid: str) -> None:
    """Delete the recorded actions of an attempt."""
    connection.execute(actions.delete().where(actions.c.trajectory_uid == trajectory_uid))
