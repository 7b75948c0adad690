"""Connects a handler's `Context` to the runner of its run."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from midstream.plans.context import MISSING, Context
from midstream.plans.errors import Fatal, Permanent
from midstream.plans.handlers import Handler
from midstream.plans.instances import Instance
from midstream.plans.rows import StepRow
from midstream.plans.states import NodeState

if TYPE_CHECKING:
    from midstream.plans.calls import Timeout
    from midstream.plans.runner import Runner


LONGEST_S = 60.0
"""Seconds a thread waits for the event loop, which may have ended."""


class RunnerPort:
    """The `Port` of one call. A sync handler calls it from its thread; the run changes only in the event loop."""

    def __init__(self, runner: Runner, one: Instance, timeout: Timeout | None = None) -> None:
        self._runner, self._one, self._timeout = runner, one, timeout
        self._loop = asyncio.get_running_loop()
        self._undoes = one.state is NodeState.COMPENSATING
        self._scope = f"{one.scope}/undo" if self._undoes else one.scope

    def context(self, handler: Handler, key: str) -> Context:
        one = self._one
        return Context(
            self,
            key=key,
            run=self._runner.row.uid,
            path=one.path,
            scope=self._scope,
            attempt=one.row.starts,
            feedback=tuple(one.row.feedback),
            role=one.node.role,
            effects=handler.effects,
        )

    def known_step(self, key: str) -> StepRow | None:
        return self._runner.ledger.steps.get(self._one.path, {}).get((self._scope, key))

    async def save_step(self, row: StepRow, value: Any = MISSING) -> None:
        ledger = self._runner.ledger
        values: dict[str, Any] = {"state": row.state, "effects": row.effects}
        if value is not MISSING:
            values["value"] = ledger.encode_result(value, f"result of step '{row.key}' of '{row.path}'")
        ledger.change_step(row, **values)
        if row.state == "done" and not self._undoes:
            self._runner.graph.change(self._one, steps_done=self._one.row.steps_done + 1)
        written = ledger.commit()
        assert written is not None
        await asyncio.shield(written)

    async def load(self, payload: str) -> Any:
        return await self._runner.payloads.load(payload)

    def encode(self, value: Any) -> str:
        return self._runner.ledger.encode(value, f"default answer of '{self._one.path}'")

    def restart_timeout(self) -> None:
        def restart() -> None:
            # A thread that outlived its timeout must not lengthen that of the next attempt.
            if self._timeout is not None and self._runner.timeouts.get(self._one) is self._timeout:
                self._timeout.restart()

        self._in_loop(restart)

    def spend(self, amounts: Mapping[str, float]) -> None:
        self._in_loop(lambda: self._spend(amounts))

    def _in_loop(self, act: Callable[[], None]) -> None:
        """Do `act` in the event loop of the run, and wait for it."""
        if threading.get_ident() == self._runner.thread:
            act()
            return
        done = Future[None]()

        def report() -> None:
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(report)
        done.result(LONGEST_S)

    def _spend(self, amounts: Mapping[str, float]) -> None:
        runner = self._runner
        spent = _sum(runner.row.spent, amounts)
        runner.ledger.change_run(spent=spent)
        accounts = [] if self._undoes else list(_accounts(self._one))
        for one in accounts:
            runner.graph.change(one, spent=_sum(one.row.spent, amounts))
        if over := _above(spent, runner.graph.compiled.plan.budgets.spend):
            raise Fatal(f"the run used {over}")
        for one in accounts:
            if over := _above(one.row.spent, one.node.budget):
                raise Permanent(f"'{one.path}' used {over}")


def _accounts(one: Instance) -> Iterator[Instance]:
    """Instances whose nodes have a budget that `one` spends from, the innermost first. Of each node it is the
    outermost, which stands for its elements and rounds."""
    above: Instance | None = one
    while above is not None:
        if above.level == 0 and above.node.budget:
            yield above
        above = above.parent


def _sum(spent: Mapping[str, float], amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: spent.get(name, 0.0) + amounts.get(name, 0.0) for name in {**spent, **amounts}}


def _above(spent: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """What was spent above its limit; empty if nothing was."""
    over = (name for name, limit in limits.items() if spent.get(name, 0.0) > limit)
    return next((f"{spent[name]:g} of {name}, above its budget of {limits[name]:g}" for name in over), "")


def question_id(run: str, row: StepRow) -> str:
    """What an answer names: short, and the same whenever it is computed."""
    return hashlib.sha256(f"{run}/{row.path}/{row.scope}/{row.key}".encode()).hexdigest()[:12]
