"""`AgentExecutor`: runs plans durably, several at once, and takes answers, cancellations and rollbacks for them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.core.names import check_name
from midstream.plans import commands, history, views
from midstream.plans.checks import compile_plan, handlers_of, pinned
from midstream.plans.errors import AnswerRefused, HandlersMissing, NoSuchQuestion, NoSuchRun, Permanent, RunHeld
from midstream.plans.handlers import Handler, Handlers
from midstream.plans.inputs import check_input
from midstream.plans.journal import Event, Journal, lease_name, load, load_row, post, read_events
from midstream.plans.misfit import misfit
from midstream.plans.owner import is_dead, new_owner
from midstream.plans.payloads import Payloads
from midstream.plans.plan import Plan, load_plan
from midstream.plans.redaction import Redact
from midstream.plans.rows import RunRow
from midstream.plans.runner import OnWait, Runner, Services
from midstream.plans.scheduling import Limits, SchedulingPolicy
from midstream.plans.states import ENDED, RunStatus
from midstream.plans.views import OpenQuestion, RunResult, RunView
from midstream.store import Database, Lease, leases

PlanSource = Plan | Mapping[str, Any] | str | Path
_log = logging.getLogger(__name__)
LEASE_S = 15.0
POLL_S = 0.5
PRUNE_EVERY_S = 600.0


class AgentExecutor:
    """Executes plans on a database. Use it as an async context manager, or call `close`.

    `handlers` are what plans may call; `max_concurrency` the handlers at work at once, over all runs; `resources` the
    units of further limits that nodes name; `policy` chooses among ready nodes (None: first come, first served). A
    worker that stops renewing its lease for `lease_s` seconds loses its runs to the next that resumes them. A path of a
    database is opened with durability `normal`: it survives the death of the process; for power cuts, open a `Database`
    with `full` and pass that. With `retention_s`, runs that ended longer ago are deleted (`prune`) when the executor is
    entered, and every ten minutes while it executes runs or is a worker. `redact` removes what must not be stored from
    texts that handlers return, raise or ask (`redaction.py`). `on_wait` is for simulated work, see `VirtualTime`.
    """

    def __init__(
        self,
        database: Database | str | Path,
        handlers: Handlers | Iterable[Handler] = (),
        *,
        max_concurrency: int = 16,
        resources: Mapping[str, int] | None = None,
        policy: SchedulingPolicy | None = None,
        on_wait: OnWait | None = None,
        retention_s: float | None = None,
        redact: Redact | None = None,
        lease_s: float = LEASE_S,
        grace_s: float = 10.0,
        seed: int | None = None,
    ) -> None:
        if retention_s is not None and not retention_s >= 0:
            raise ValueError(f"retention_s must be at least 0, not {retention_s}")
        self._owns_database = not isinstance(database, Database)
        self.database = database if isinstance(database, Database) else Database(database, "normal")
        self.handlers = handlers if isinstance(handlers, Handlers) else Handlers(handlers)
        journal = Journal(self.database)
        self._threads = ThreadPoolExecutor(max_concurrency, "midstream-plans")
        self._services = Services(
            journal,
            Payloads(self.database),
            self.handlers,
            Limits(max_concurrency, resources or {}),
            self._threads,
            policy,
            on_wait,
            grace_s,
            random.Random(seed),
            redact,
        )
        self._journal, self._lease_s, self._retention_s = journal, lease_s, retention_s
        self._prune_at = clock.monotonic()
        self._owner = new_owner()
        self._runners: dict[str, Runner | None] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._draining = False

    # Running

    async def run(
        self, plan: PlanSource, input: Any = None, *, uid: str | None = None, wait: bool = False
    ) -> RunResult:
        """Start a run and execute it: to its end, or until only answers can continue it (`wait` waits for them).

        With a `uid` that exists it goes on with that run. Raises `PlanError`, and `RunHeld` when another worker holds
        the run.
        """
        return await self.resume(await self.start(plan, input, uid=uid), wait=wait)

    async def start(self, plan: PlanSource, input: Any = None, *, uid: str | None = None) -> str:
        """Create a run without executing it; returns its uid. Creating the same run again changes nothing."""
        uid = uuid.uuid4().hex[:16] if uid is None else _checked(uid)
        asked, given = load_plan(plan), {} if input is None else input
        payloads = self._services.payloads
        stored_input = payloads.encode(given, "input")
        made = pinned(asked, self.handlers)
        if await self._exists(uid, asked, made, stored_input.text):
            return uid  # with the handlers it began with, which need not be those this plan would get now
        compile_plan(made, self.handlers, self._services.limits.total)
        try:
            check_input(made, given, f"plan '{made.name}'")
        except Permanent as error:
            raise RunError(str(error), "see the plan's `inputs`") from None
        stored_plan = payloads.encoded(made.as_json())
        blobs = {one.text: one.blob for one in (stored_plan, stored_input) if one.blob is not None}
        now = clock.time()
        found = {name: self.handlers.get(name) for name, _ in handlers_of(made)}
        row = RunRow(uid, made.name, plan=stored_plan.text, input=stored_input.text, created_at=now)
        row.asked, row.plans_seen = asked.hash, [made.hash]
        row.deadline = None if made.deadline_s is None else now + made.deadline_s
        row.fingerprints = {name: one.fingerprint for name, one in found.items() if one is not None and one.fingerprint}
        if not await self._change(lambda connection: history.create(connection, row, blobs)):
            await self._exists(uid, asked, made, stored_input.text)
        return uid

    async def _exists(self, uid: str, asked: Plan, made: Plan, input: str) -> bool:
        """Whether there is a run `uid`. Raises `RunError` when it has another plan or input."""
        try:
            known = await self._journal.read(lambda connection: load_row(connection, uid))
        except NoSuchRun:
            return False
        same = known.asked == asked.hash or known.plans_seen[:1] == [made.hash]
        if not same or known.input != input:
            raise RunError(f"run '{uid}' exists, with another plan or input", "give the new run another uid")
        return True

    async def resume(self, uid: str, *, wait: bool = False) -> RunResult:
        """Execute a run from where it is. A run that ended is only looked at, and commands for it are carried out.

        Raises `HandlersMissing` when it needs versions of handlers that are not registered, `RunHeld` when another
        worker holds it, `LeaseLost` when another took it over meanwhile, and `RunError` when the database fails.
        """
        if uid in self._runners:
            raise RunHeld(f"this executor executes run '{uid}' already", "await the first call")
        self._runners[uid] = None
        lease: Lease | None = None
        try:
            await self._journal.read(lambda connection: load_row(connection, uid))
            lease = await self._acquire(uid)
            saved = await self._journal.read(lambda connection: load(connection, uid))
            compiled = compile_plan(load_plan(saved.plan), None)
            runner = Runner(self._services, saved, compiled, lease)
            if saved.run.status is RunStatus.PAUSED:
                runner.ledger.change_run(RunStatus.RUNNING)
            runner.draining = self._draining
            self._runners[uid] = runner
            self._keep()
            await runner.execute(idle_returns=not wait)
        finally:
            del self._runners[uid]
            if lease is not None:
                await self._release(lease)
        return await self.result(uid)

    async def work(self, *, poll_s: float = POLL_S) -> None:
        """Be a worker: execute every run that no living worker holds, until cancelled or drained."""
        busy: dict[str, asyncio.Task[None]] = {}
        blocked: set[str] = set()
        try:
            while not self._draining:
                await self._prune_in_time()
                for uid in await self._journal.read(views.unfinished):
                    if uid not in busy and uid not in self._runners and uid not in blocked:
                        busy[uid] = asyncio.create_task(self._worked(uid, blocked))
                busy = {uid: task for uid, task in busy.items() if not task.done()}
                await clock.sleep(poll_s)
            await asyncio.gather(*busy.values())
        finally:
            for task in busy.values():
                task.cancel()
            await asyncio.gather(*busy.values(), return_exceptions=True)

    async def _worked(self, uid: str, blocked: set[str]) -> None:
        try:
            await self.resume(uid, wait=True)
        except HandlersMissing as error:
            blocked.add(uid)  # a worker with other handlers can go on with it
            _log.warning("%s", error)
        except RunError as error:  # held by another, lost, or damaged
            _log.info("run %s: %s", uid, error.message)

    async def drain(self) -> None:
        """Start nothing new, let handlers that run come to an end, and give all runs back; they can be resumed."""
        self._draining = True
        for runner in self._runners.values():
            if runner is not None:
                runner.draining = True
                runner.wake.set()
        while self._runners:
            await asyncio.sleep(0.005)

    # Commands

    async def answer(self, uid: str, question: str, value: Any) -> None:
        """Answer an open question. Raises `NoSuchQuestion`, and `AnswerRefused` for an answer that is not JSON or does
        not fit."""
        asked = next((one for one in await self.questions(uid) if one.id == question), None)
        if asked is None:
            raise NoSuchQuestion(f"run '{uid}' has no open question '{question}'", "see: midstream plan status")
        try:
            value = json.loads(json.dumps(value, allow_nan=False))  # what is checked is what the node gets
        except (TypeError, ValueError, RecursionError) as error:
            raise AnswerRefused(f"the answer is not JSON: {error}") from None
        if problem := misfit(value, asked.schema):
            raise AnswerRefused(f"the answer does not fit: {problem}", f"its schema is {asked.schema}")
        if not await self._command(uid, commands.ANSWER, {"answer": value}, question):
            raise AnswerRefused(f"question '{question}' was answered already")

    async def cancel(self, uid: str, *, compensate: bool = True) -> None:
        """Cancel a run: nothing new starts, what runs comes to an end, and what succeeded is compensated."""
        await self._command(uid, commands.CANCEL, {"compensate": compensate})

    async def rollback(self, uid: str, to: str | None = None) -> RunResult:
        """Compensate what a run did, wholly or back to a savepoint: then it is `paused`, and `resume` goes on.

        A run held by another worker is rolled back there."""
        return await self._carried_out(uid, commands.ROLLBACK, {"to": to})

    async def retry(self, uid: str) -> RunResult:
        """Run the failed nodes of a failed run again."""
        return await self._carried_out(uid, commands.RETRY, {})

    async def revise(self, uid: str, plan: PlanSource) -> None:
        """Give a run that has not ended a new plan. Nodes that are done or under way keep theirs."""
        revised = pinned(load_plan(plan), self.handlers)
        compile_plan(revised, self.handlers, self._services.limits.total)
        await self._command(uid, commands.REVISE, {"plan": revised.model_dump(mode="json", exclude_defaults=True)})

    async def _carried_out(self, uid: str, kind: str, data: dict[str, Any]) -> RunResult:
        before = (await self._journal.read(lambda connection: load_row(connection, uid))).seq
        await self._command(uid, kind, data)
        try:
            result = await self.resume(uid)
        except RunHeld:
            return await self.result(uid)
        async for event in self.events(uid, before):
            if event.kind == "note" and event.data.get("command") == kind:
                return replace(result, refused=event.data.get("refused", ""))
        return result

    async def _command(self, uid: str, kind: str, data: dict[str, Any], target: str = "") -> bool:
        await self._journal.read(lambda connection: load_row(connection, uid))
        target = target or uuid.uuid4().hex
        posted = await self._change(lambda connection: post(connection, uid, kind, target, data))
        if (runner := self._runners.get(uid)) is not None:
            runner.mail = True
            runner.wake.set()
        return posted

    # Looking

    async def result(self, uid: str) -> RunResult:
        """The end, or the present, of a run."""
        return await self._journal.read(lambda connection: views.result(connection, uid))

    async def status(self, uid: str) -> RunView:
        """A run with the state of every node."""
        return await self._journal.read(lambda connection: views.view(connection, uid))

    async def outputs(self, uid: str) -> dict[str, Any]:
        """What the succeeded nodes of the outermost plan returned, by id."""
        return await self._journal.read(lambda connection: views.outputs(connection, uid))

    async def questions(self, uid: str | None = None) -> list[OpenQuestion]:
        """Open questions of a run, or of all."""
        return await self._journal.read(lambda connection: views.questions(connection, uid))

    async def events(self, uid: str, after: int = 0, *, follow: bool = False) -> AsyncIterator[Event]:
        """Events of a run with a number above `after`; with `follow`, also those to come until the run ends."""
        while True:
            row = await self._journal.read(lambda connection: load_row(connection, uid))
            page = await self._journal.read(partial(read_events, uid=uid, after=after, limit=1000))
            for event in page:
                yield event
                after = event.seq
            if not page and (not follow or row.status in ENDED):
                return
            if not page:
                await clock.sleep(POLL_S / 5)

    async def fork(self, uid: str, at: int | None = None, *, new_uid: str | None = None) -> str:
        """Create a run that goes on from the state of `uid` after event `at` and those written together with it
        (None: now); returns its uid."""
        new = uuid.uuid4().hex[:16] if new_uid is None else _checked(new_uid)
        await self._change(lambda connection: history.fork(connection, uid, at, new))
        return new

    async def prune(self, older_than_s: float) -> list[str]:
        """Delete runs that ended longer ago, with what only they used; returns their uids."""
        before = clock.time() - older_than_s
        return await self._change(lambda connection: history.prune(connection, before))

    async def _prune_in_time(self) -> None:
        """Prune if the executor has a retention and the last time is long enough ago."""
        if self._retention_s is None or clock.monotonic() < self._prune_at:
            return
        self._prune_at = clock.monotonic() + PRUNE_EVERY_S
        try:
            pruned = await self.prune(self._retention_s)
        except RunError as error:  # the runs go on; the next time may succeed
            _log.warning("old runs were not deleted: %s", error)
            return
        if len(pruned) == history.PRUNED_AT_ONCE:
            self._prune_at = clock.monotonic()  # there may be more

    async def delete(self, uid: str) -> None:
        """Delete a run that has ended, with what only it used. Raises `RunError` for one that has not, or has forks."""
        await self._change(lambda connection: history.delete(connection, uid))

    # Leases

    async def _acquire(self, uid: str) -> Lease:
        lease = await self._change(
            lambda connection: leases.acquire(connection, lease_name(uid), self._owner, self._lease_s, is_dead)
        )
        if lease is None:
            raise RunHeld(f"another worker holds run '{uid}'", "it goes on there; its lease ends when it dies")
        return lease

    async def _release(self, lease: Lease) -> None:
        await self.database.submit(lambda transaction: leases.release(transaction.connection, lease))

    def _keep(self) -> None:
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        """While runs are executed: renew their leases, look for commands from other processes, and prune."""
        renewed = clock.monotonic()
        while any(self._runners.values()):
            await self._prune_in_time()
            await clock.sleep(POLL_S)
            held = {uid: runner for uid, runner in self._runners.items() if runner is not None}
            for uid in await self._journal.read(partial(views.with_mail, uids=list(held))):
                held[uid].mail = True
                held[uid].wake.set()
            if clock.monotonic() - renewed >= self._lease_s / 3:
                renewed = clock.monotonic()
                await asyncio.gather(*(self._renew(runner) for runner in held.values()))

    async def _renew(self, runner: Runner) -> None:
        try:
            await self.database.submit(
                lambda transaction: leases.renew(transaction.connection, runner.ledger.lease, self._lease_s)
            )
        except RunError as error:
            runner.stop(error)

    async def _change(self, change: Any) -> Any:
        return await self.database.submit(lambda transaction: change(transaction.connection))

    # Closing

    async def close(self) -> None:
        """Drain, and close the database if this executor opened it."""
        await self.drain()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._owns_database:
            await asyncio.to_thread(self.database.close)

    async def __aenter__(self) -> Self:
        await self._prune_in_time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _checked(uid: str) -> str:
    try:
        return check_name(uid)
    except ValueError as error:
        raise RunError(f"'{uid}' cannot be the uid of a run: {error}") from None
