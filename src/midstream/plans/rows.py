"""What the journal keeps of a run, its nodes and their steps, as records that events change field by field."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any

from midstream.plans.states import NodeState, Phase, RunStatus


@dataclass(slots=True)
class NodeRow:
    """One node of a run. Payload fields are JSON text or the hash of a blob."""

    state: NodeState = NodeState.PENDING
    handler: str = ""
    """Full name of the handler it ran last."""
    choice: int = 0
    """0 for the node's own handler, then its fallbacks."""
    generation: int = 0
    """Counts resets: after a rollback to a savepoint, or when a new plan changed the node. Part of its key."""
    starts: int = 0
    retries: int = 0
    corrections: int = 0
    recoveries: int = 0
    """How often its worker died while it ran."""
    feedback: list[str] = field(default_factory=list[str])
    """Messages of correctable failures."""
    output: str = ""
    """Payload of what it returned; empty before."""
    error: dict[str, str] | None = None
    finished: int = 0
    """Its position in the order in which nodes succeeded: compensations run in the reverse order."""
    started_at: float | None = None
    ended_at: float | None = None
    wake_at: float | None = None
    """When a timer or a backoff ends."""
    wait_s: float | None = None
    """How long that wait was when it began: no clock makes it longer."""
    bindings: str = ""
    """Payload of a sub-plan's input, or of a map's list."""
    phase: Phase = Phase.FORWARD
    purpose: str = ""
    """Why a scope settles or is undone: `fail`, `cancel`, `rollback`, or `return` to a savepoint. Of a call that is
    undone because it failed: what follows, `fallback` or `failed`."""
    reason: str = ""
    undo_starts: int = 0
    undo_retries: int = 0
    undo_recoveries: int = 0
    """How often its worker died while its compensation ran."""
    undo_error: dict[str, str] | None = None
    steps_done: int = 0
    """`ctx.step`s that succeeded in this generation."""
    undone: list[str] = field(default_factory=list[str])
    """Scopes (`generation.choice`) that were compensated: their steps have no effect any more."""
    spent: dict[str, float] = field(default_factory=dict[str, float])
    """Totals of `ctx.spend` in this generation, of a node with a budget."""


@dataclass(slots=True)
class RunRow:
    """One run."""

    uid: str
    name: str = ""
    status: RunStatus = RunStatus.RUNNING
    seq: int = 0
    plan: str = ""
    """Payload of the plan, as JSON, with pinned handlers."""
    revision: int = 0
    input: str = ""
    output: str = ""
    error: dict[str, str] | None = None
    created_at: float = 0.0
    ended_at: float | None = None
    deadline: float | None = None
    parent: str | None = None
    parent_seq: int = 0
    used: dict[str, float] = field(default_factory=dict[str, float])
    """Uses of each budget: retries, fallbacks, replans, rollbacks, starts."""
    spent: dict[str, float] = field(default_factory=dict[str, float])
    """Totals of `ctx.spend`."""
    fingerprints: dict[str, str] = field(default_factory=dict[str, str])
    """Hashes of the handlers' sources when the run began."""
    plans_seen: list[str] = field(default_factory=list[str])
    """Hashes of all revisions."""
    asked: str = ""
    """Hash of the plan it was started with, before the versions of its handlers were filled in."""
    planned: int = 0
    """Results of `replan` handlers that were taken or refused."""
    remains: list[str] = field(default_factory=list[str])
    """After a rollback: paths of nodes whose effects remain."""


@dataclass(slots=True)
class StepRow:
    """A `ctx.step`, a question or a timer of a node."""

    path: str
    scope: str
    key: str
    kind: str = "step"
    """`step`, `question` or `timer`."""
    state: str = "intent"
    """Steps: `intent`, `done`, `absent` (it did not happen). Questions: `open`, `answered`, `expired`, and `failed` if
    the answer is that a call in doubt failed. Timers: `open`, `done`."""
    id: str = ""
    """Of a question: what an answer names."""
    value: str = ""
    """Payload of the result or answer."""
    prompt: str = ""
    schema: dict[str, Any] = field(default_factory=dict[str, Any])
    default: str = ""
    """Payload taken when the question expires; empty fails the node."""
    wake_at: float | None = None
    wait_s: float | None = None
    effects: str = "once"
    asked_at: float | None = None

    @property
    def place(self) -> tuple[str, str, str]:
        return self.path, self.scope, self.key


_DEFAULTS = {
    kind: {
        one.name: one.default_factory() if callable(one.default_factory) else one.default  # pyright: ignore[reportUnknownMemberType]
        for one in fields(kind)
    }
    for kind in (NodeRow, RunRow, StepRow)
}
_TYPES: dict[str, Any] = {"phase": Phase}


def changed(row: NodeRow | RunRow | StepRow) -> dict[str, Any]:
    """Fields of `row` that differ from their defaults."""
    defaults = _DEFAULTS[type(row)]
    return {name: value for name, default in defaults.items() if (value := getattr(row, name)) != default}


def assign(row: NodeRow | RunRow | StepRow, values: dict[str, Any]) -> None:
    """Set fields from JSON data."""
    for name, value in values.items():
        if name == "state" and isinstance(row, NodeRow):
            value = NodeState(value)
        elif name == "status":
            value = RunStatus(value)
        elif name in _TYPES:
            value = _TYPES[name](value)
        setattr(row, name, value)


def node_values(run: str, path: str, row: NodeRow) -> dict[str, Any]:
    """A row of the table `plan_nodes`."""
    data = changed(row)
    for name in ("state", "handler", "starts", "output", "error"):
        data.pop(name, None)
    return {
        "run": run,
        "path": path,
        "state": str(row.state),
        "handler": row.handler,
        "starts": row.starts,
        "output": row.output,
        "error": "" if row.error is None else json.dumps(row.error),
        "data": json.dumps(data),
    }


def read_node(values: Any) -> NodeRow:
    """The record of a row of `plan_nodes`."""
    row = NodeRow(
        NodeState(values.state),
        values.handler,
        starts=values.starts,
        output=values.output,
        error=json.loads(values.error) if values.error else None,
    )
    assign(row, json.loads(values.data))
    return row


def run_values(row: RunRow) -> dict[str, Any]:
    """A row of the table `plan_runs`."""
    columns = ("uid", "name", "status", "seq", "plan", "created_at", "ended_at", "parent")
    data = {name: value for name, value in changed(row).items() if name not in columns}
    return {**{name: getattr(row, name) for name in columns}, "status": str(row.status), "data": json.dumps(data)}


def read_run(values: Any) -> RunRow:
    """The record of a row of `plan_runs`."""
    columns = ("uid", "name", "seq", "plan", "created_at", "ended_at", "parent")
    row = RunRow(**{name: getattr(values, name) for name in columns}, status=RunStatus(values.status))
    assign(row, json.loads(values.data))
    return row


def step_values(run: str, row: StepRow) -> dict[str, Any]:
    """A row of the table `plan_steps`."""
    columns = ("path", "scope", "key", "kind", "state", "id", "value")
    data = {name: value for name, value in changed(row).items() if name not in columns}
    return {"run": run, **{name: getattr(row, name) for name in columns}, "data": json.dumps(data)}


def read_step(values: Any) -> StepRow:
    """The record of a row of `plan_steps`."""
    columns = ("path", "scope", "key", "kind", "state", "id", "value")
    row = StepRow(**{name: getattr(values, name) for name in columns})
    assign(row, json.loads(values.data))
    return row
