"""Drives one run: starts what is ready, takes in what ended, and writes every change before it acts on it.

The loop is the only one that changes the graph. Calls of handlers are tasks of their own, which report what came of
them in `ended`. Each turn of the loop collects its changes into one transaction; a handler with effects starts only
when the transaction with its intent is on disk.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from midstream.core import clock
from midstream.core.errors import UserError
from midstream.plans import calls, commands, inputs, outcomes, recovery, work
from midstream.plans.calls import Outcome
from midstream.plans.checks import Compiled
from midstream.plans.errors import Failure, Kind, Permanent, Stuck
from midstream.plans.graph import Graph
from midstream.plans.handlers import Handler, Handlers
from midstream.plans.instances import Instance
from midstream.plans.journal import Journal, Saved
from midstream.plans.ledger import Ledger
from midstream.plans.payloads import Payloads
from midstream.plans.port import RunnerPort
from midstream.plans.redaction import Redact
from midstream.plans.rows import RunRow, StepRow
from midstream.plans.scheduling import Limits, ReadyNode, ReadyQueue, SchedulerState, SchedulingPolicy
from midstream.plans.states import ENDED, NodeState, RunStatus
from midstream.store import Lease

S, R = NodeState, RunStatus
HandlerCall = Callable[["asyncio.Future[None] | None"], Awaitable[Outcome]]
"""Executes something for an instance, given the transaction with its intent."""
OnWait = Callable[[str, int], None]
"""Called with a run and the number of its calls under way when it can go on only after one of them has ended, and with
0 when it goes on."""


@dataclass
class Services:
    """What the runs of an executor share."""

    journal: Journal
    payloads: Payloads
    handlers: Handlers
    limits: Limits
    threads: Executor
    policy: SchedulingPolicy | None = None
    on_wait: OnWait | None = None
    grace_s: float = 10.0
    """After a cancellation, how long nodes that run may still come to an end by themselves."""
    random: random.Random = field(default_factory=random.Random)
    """For the jitter of backoffs."""
    redact: Redact | None = None


@dataclass(order=True, slots=True)
class _Timer:
    due: float
    number: int
    act: Callable[[], None] = field(compare=False)
    continues: Callable[[], bool] = field(compare=False)


class Runner:
    """One run, held under a lease."""

    def __init__(self, services: Services, saved: Saved, compiled: Compiled, lease: Lease) -> None:
        self.services, self.payloads = services, services.payloads
        self.graph = Graph(compiled, saved.nodes, clock.time(), services.redact)
        self.ledger = Ledger(
            services.journal, services.payloads, saved.run, self.graph, saved.steps, lease, self.stop, services.redact
        )
        self.row: RunRow = saved.run
        self.starts = sum(row.starts for row in saved.nodes.values())
        self.queue = ReadyQueue()
        self.tasks: dict[Instance, asyncio.Task[None]] = {}
        self.timeouts: dict[Instance, calls.Timeout] = {}
        self.ended: deque[tuple[Instance, Outcome]] = deque()
        self.wake = asyncio.Event()
        self.mail = True
        """Whether the inbox may hold something."""
        self.draining = False
        self.thread = threading.get_ident()
        """Of the event loop."""
        self.stalls: dict[tuple[str, int], tuple[set[str], int, int]] = {}
        """Of each loop, by path and generation: outputs of its rounds, rounds in a row without a new
        one, and rounds counted."""
        self._held: dict[Instance, Mapping[str, int]] = {}
        self._held_units: dict[str, int] = {}
        self._starting: list[tuple[Instance, HandlerCall]] = []
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()
        self._alarm: tuple[float, asyncio.Task[None]] | None = None
        self._broken: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """Stop without writing anything more; `execute` raises `error`."""
        self._broken = self._broken or error
        self.wake.set()

    async def execute(self, *, idle_returns: bool) -> RunStatus:
        """Work until the run ends, is paused, blocked or drained; with `idle_returns` also until only answers can
        continue it. Raises what kept changes from being written."""
        try:
            await recovery.recover(self)
            while True:
                self.wake.clear()
                if self._broken is not None:
                    raise self._broken
                await self._turn()
                if self.graph.todo or self.ended:
                    continue
                if await self._is_over(idle_returns):
                    return self.row.status
                await self._wait()
        finally:
            await self._stop()

    async def _wait(self) -> None:
        on_wait = self.services.on_wait
        if on_wait is not None:
            on_wait(self.row.uid, len(self.tasks))
        await self.wake.wait()
        if on_wait is not None:
            on_wait(self.row.uid, 0)

    async def _turn(self) -> None:
        self.graph.now = clock.time()
        while self.ended:
            one, outcome = self.ended.popleft()
            self.tasks.pop(one, None)
            self.give_back(one)
            outcomes.take(self, one, outcome)
        while self._timers and self._timers[0].due <= clock.monotonic():
            heapq.heappop(self._timers).act()
        if self.mail:
            self.mail = False
            await commands.carry_out(self)
        if self.graph.todo and self.row.status is R.WAITING:
            self.ledger.change_run(R.RUNNING)
        while self.graph.todo:
            todo, one = self.graph.todo.popleft()
            await work.do(self, todo, one)
        if not self.draining and self.row.status in (R.RUNNING, R.ROLLING_BACK):
            while (one := await self._next()) is not None:
                self._begin_call(one)
        written = self.ledger.commit()
        starting, self._starting = self._starting, []
        for one, call in starting:
            self.tasks[one] = asyncio.create_task(self._report(one, call(written)))
        self._set_alarm()

    async def _report(self, one: Instance, call: Awaitable[Outcome]) -> None:
        try:
            outcome = await call
        except asyncio.CancelledError:
            outcome = calls.Unknown(Failure(Kind.TRANSIENT, "Cancelled", "it was stopped"))
        except Exception as error:  # a payload that cannot be read, a transaction that failed, or a bug
            self.stop(error)
            return
        self.ended.append((one, outcome))
        self.wake.set()

    async def _is_over(self, idle_returns: bool) -> bool:
        status = self.row.status
        if self.tasks:
            return False
        over = status in ENDED or status in (R.PAUSED, R.BLOCKED) or self.draining
        if not over:
            idle = not any(timer.continues() for timer in self._timers) and not any(self.queue)
            asks = bool(self.open_questions())
            if idle and not asks and not self.mail:
                raise Stuck(f"run '{self.row.uid}' has not ended, and nothing in it can go on")
            over = idle_returns and idle and not self.mail
            if idle and asks and status is R.RUNNING:
                self.ledger.change_run(R.WAITING)
        if (written := self.ledger.commit()) is not None and over:
            await written
        return over

    async def _stop(self) -> None:
        self.services.limits.forget(self)
        if self._alarm is not None:
            self._alarm[1].cancel()
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in list(self._held):
            self.give_back(one)

    def open_questions(self) -> list[StepRow]:
        """Questions without an answer that nodes wait for."""
        rows = (row for known in self.ledger.steps.values() for row in known.values())
        return [row for row in rows if row.kind == "question" and row.state == "open" and self._waits(row.path)]

    def _waits(self, path: str) -> bool:
        one = self.graph.instances.get(path)
        return one is not None and one.state in (S.WAITING, S.IN_DOUBT)

    def after(self, seconds: float, act: Callable[[], None], continues: Callable[[], bool] = lambda: False) -> None:
        """Call `act` in the loop when `seconds` have passed. `continues` says whether that will go on with the run, so
        that it is worth waiting for."""
        due = clock.monotonic() + max(seconds, 0.0)
        heapq.heappush(self._timers, _Timer(due, next(self._numbers), act, continues))

    def _set_alarm(self) -> None:
        if not self._timers:
            return
        due = self._timers[0].due
        if self._alarm is not None and not self._alarm[1].done():
            if self._alarm[0] <= due:
                return
            self._alarm[1].cancel()
        self._alarm = (due, asyncio.create_task(self._ring(due)))

    async def _ring(self, due: float) -> None:
        await clock.sleep(max(due - clock.monotonic(), 0.0))
        self.wake.set()

    async def _next(self) -> Instance | None:
        """The node that starts next; None while none may."""
        policy = self.services.policy
        one = self.queue.pop(self._fits) if policy is None else await self._chosen(policy)
        if one is None and (wanted := self.queue.wanted):
            self.services.limits.wait(self, wanted, self.wake.set)
        return one

    def _fits(self, needs: Mapping[str, int]) -> bool:
        plan = self.graph.compiled.plan
        if plan.max_concurrency is not None and len(self._held) >= plan.max_concurrency:
            return False
        for name, count in needs.items():
            if name in plan.limits and self._held_units.get(name, 0) + count > plan.limits[name]:
                return False
        return self.services.limits.fits(needs)

    async def _chosen(self, policy: SchedulingPolicy) -> Instance | None:
        ready = list(self.queue)
        feasible = [self._fits(one.node.resources) for one in ready]
        if not any(feasible):
            return None
        state = SchedulerState(
            self.row.uid,
            [self._ready_node(one) for one in ready],
            feasible,
            [one.path for one in self._held],
            sum(one.state is S.SUCCEEDED for one in self.graph.instances.values()),
            dict(self.services.limits.free),
            clock.time() - self.row.created_at,
        )
        choice = await policy.choose(state)
        if not 0 <= choice.index < len(ready) or not feasible[choice.index]:
            raise UserError(f"the scheduling policy '{policy.name}' chose a node that is not feasible")
        one = ready[choice.index]
        logged: dict[str, Any] = {"policy": policy.name, "ready": [each.path for each in ready], "feasible": feasible}
        logged |= {"index": choice.index, "log_prob": choice.log_prob}
        self.ledger.note("choice", one.path, **logged, **({"metadata": choice.metadata} if choice.metadata else {}))
        self.queue.remove(one)
        return one

    def _ready_node(self, one: Instance) -> ReadyNode:
        dependents = one.siblings.compiled.dependents.get(one.node.id, ()) if one.siblings is not None else ()
        name = self.call_of(one)[0]
        return ReadyNode(one.path, name, one.node.role, one.node.resources, one.row.starts + 1, len(dependents))

    def call_of(self, one: Instance) -> tuple[str, dict[str, Any], float | None]:
        """Handler, arguments and timeout of a call: those of the node, or of its fallback."""
        node = one.node
        if one.row.choice:
            fallback = node.fallback[one.row.choice - 1]
            return fallback.handler, node.args if fallback.args is None else fallback.args, fallback.timeout_s
        assert node.handler is not None
        return node.handler, node.args, node.timeout_s

    def _begin_call(self, one: Instance) -> None:
        """Write the intent of `one`; its handler starts once that is on disk."""
        name, args, timeout_s = self.call_of(one)
        handler, migrate = recovery.find_handler(self.services.handlers, name)
        if self.starts >= self.graph.compiled.plan.budgets.starts:
            failure = Failure(Kind.FATAL, "BudgetSpent", "the plan's budget of starts is used up")
            self.graph.change(one, S.FAILED, error=failure.as_json())
            self.graph.fail_scope(self.graph.root, failure.as_json())
            return
        self.starts += 1
        self.graph.change(one, S.RUNNING, handler=handler.full_name, starts=one.row.starts + 1)
        self._hold(one)

        async def call(written: asyncio.Future[None] | None) -> Outcome:
            try:
                given = await inputs.arguments(self.payloads, one, args, self.row.input)
                parsed = handler.parse(migrate({**given, **outcomes.filled(self, one, handler)}))
            except Permanent as error:
                return calls.Raised(Failure.of(error))
            if handler.effects != "none" and written is not None:
                await asyncio.shield(written)
            return await self.call(one, handler, parsed, self.key(one), timeout_s or handler.timeout_s)

        self.spawn(one, call)

    def spawn(self, one: Instance, call: HandlerCall) -> None:
        """Start a task for `one` after the next transaction."""
        self._starting.append((one, call))

    async def call(self, one: Instance, handler: Handler, args: dict[str, Any], key: str, timeout_s: float) -> Outcome:
        """Call `handler` on behalf of `one`."""
        self.timeouts[one] = timeout = calls.Timeout(timeout_s)
        context = RunnerPort(self, one, timeout).context(handler, key)
        try:
            return await calls.call(handler, args, context, timeout, self.services.threads)
        finally:
            self.timeouts.pop(one, None)

    def key(self, one: Instance) -> str:
        """The idempotency key of a node's calls: one for each generation and fallback."""
        return f"{self.row.uid}/{one.path}/{one.scope}"

    def use(self, budget: str) -> bool:
        """Count one use of a budget of the plan; False when it is used up."""
        used = self.row.used.get(budget, 0)
        if used >= getattr(self.graph.compiled.plan.budgets, budget):
            return False
        self.ledger.change_run(used={**self.row.used, budget: used + 1})
        return True

    def _hold(self, one: Instance) -> None:
        self._held[one] = one.node.resources
        self.services.limits.take(one.node.resources)
        for name, count in one.node.resources.items():
            self._held_units[name] = self._held_units.get(name, 0) + count

    def give_back(self, one: Instance) -> None:
        """Return the place and the resources that a call held, if it held any."""
        needs = self._held.pop(one, None)
        if needs is not None:
            self.services.limits.give(needs)
            for name, count in needs.items():
                self._held_units[name] -= count
