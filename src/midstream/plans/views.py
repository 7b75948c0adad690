"""What one sees of runs from outside: results, the state of every node, open questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from midstream.core import clock
from midstream.plans import tables
from midstream.plans.errors import Failure
from midstream.plans.instances import PLANNER
from midstream.plans.journal import lease_name, load, load_row
from midstream.plans.payloads import read_body
from midstream.plans.plan import Plan, load_plan
from midstream.plans.rows import NodeRow, RunRow, StepRow, read_step
from midstream.plans.states import ENDED, NodeState, RunStatus
from midstream.store.exact_json import from_json
from midstream.store.leases import held_by


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question that waits for an answer."""

    run: str
    id: str
    path: str
    prompt: str
    schema: dict[str, Any]
    asked_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, or where it stands."""

    uid: str
    status: RunStatus
    output: Any = None
    error: str = ""
    questions: tuple[OpenQuestion, ...] = ()
    remains: tuple[str, ...] = ()
    """After a rollback: paths of nodes whose effects remain, because they are irreversible, have no compensation, or it
    failed."""
    refused: str = ""
    """Why the rollback or retry that returned this was not carried out; empty when it was."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with its plan and the rows of its nodes by path. Nodes without a row are pending."""

    run: RunRow
    plan: Plan
    nodes: dict[str, NodeRow]
    questions: list[OpenQuestion]
    held: bool
    """Whether a worker holds its lease."""
    counts: dict[NodeState, int] = field(default_factory=dict[NodeState, int])

    @property
    def interrupted(self) -> bool:
        """Whether it should be running, and no worker executes it."""
        return not self.held and self.run.status in (RunStatus.RUNNING, RunStatus.ROLLING_BACK)


def result(connection: sa.Connection, uid: str) -> RunResult:
    row = load_row(connection, uid)
    output = from_json(read_body(connection, row.output)) if row.output else None
    error = str(Failure.from_json(row.error)) if row.error is not None else ""
    return RunResult(uid, row.status, output, error, tuple(questions(connection, uid)), tuple(row.remains))


def view(connection: sa.Connection, uid: str) -> RunView:
    saved = load(connection, uid)
    counts: dict[NodeState, int] = {}
    for path, row in saved.nodes.items():
        if path and not path.startswith(PLANNER):
            counts[row.state] = counts.get(row.state, 0) + 1
    plan = load_plan(saved.plan)
    without_row = sum(node.id not in saved.nodes for node in plan.nodes)
    if without_row:
        counts[NodeState.PENDING] = counts.get(NodeState.PENDING, 0) + without_row
    held = held_by(connection, lease_name(uid)) is not None
    return RunView(saved.run, plan, saved.nodes, questions(connection, uid), held, counts)


def outputs(connection: sa.Connection, uid: str) -> dict[str, Any]:
    """What the succeeded nodes of the outermost plan returned, by id."""
    saved = load(connection, uid)
    rows = {node.id: saved.nodes.get(node.id) for node in load_plan(saved.plan).nodes}
    return {
        name: from_json(read_body(connection, row.output))
        for name, row in rows.items()
        if row is not None and row.state is NodeState.SUCCEEDED and row.output
    }


def questions(connection: sa.Connection, uid: str | None = None) -> list[OpenQuestion]:
    """Questions that nodes wait for, without an answer in the inbox, oldest first."""
    steps, inbox = tables.steps.c, tables.inbox.c
    answered = sa.exists().where(inbox.run == steps.run, inbox.target == steps.id)
    nodes = tables.nodes.c
    waits = sa.exists().where(
        nodes.run == steps.run, nodes.path == steps.path, nodes.state.in_(("waiting", "in_doubt"))
    )
    query = sa.select(tables.steps).where(steps.kind == "question", steps.state == "open", waits, ~answered)
    if uid is not None:
        query = query.where(steps.run == uid)
    found = [(row.run, read_step(row)) for row in connection.execute(query)]
    return [_question(run, row) for run, row in sorted(found, key=lambda pair: (pair[1].asked_at or 0.0, pair[1].id))]


def _question(run: str, row: StepRow) -> OpenQuestion:
    return OpenQuestion(run, row.id, row.path, row.prompt, row.schema, row.asked_at or 0.0, row.wake_at)


def runs(connection: sa.Connection, status: str | None = None, limit: int = 100) -> list[RunRow]:
    """Runs, the newest first."""
    from midstream.plans.rows import read_run

    query = sa.select(tables.runs).order_by(tables.runs.c.created_at.desc()).limit(limit)
    if status is not None:
        query = query.where(tables.runs.c.status == status)
    return [read_run(row) for row in connection.execute(query)]


def unfinished(connection: sa.Connection) -> list[str]:
    """Uids of runs that a worker could execute, the oldest first; those with a worker are among them."""
    kept = [str(status) for status in RunStatus if status not in ENDED and status is not RunStatus.PAUSED]
    columns = tables.runs.c
    query = sa.select(columns.uid).where(columns.status.in_(kept)).order_by(columns.created_at)
    return [uid for uid in connection.scalars(query) if held_by(connection, lease_name(uid)) is None]


def with_mail(connection: sa.Connection, uids: Sequence[str]) -> list[str]:
    """Those of `uids` whose inbox holds something."""
    waiting = set(connection.scalars(sa.select(tables.inbox.c.run).distinct()))
    return [uid for uid in uids if uid in waiting]


def describe(event_data: dict[str, Any]) -> str:
    """Fields of an event on one line."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in event_data.items())


def age_s(row: RunRow) -> float:
    """Seconds since a run was created, up to its end."""
    return (row.ended_at or clock.time()) - row.created_at
