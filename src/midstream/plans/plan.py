"""The plan: a versioned, validated JSON document of nodes, their dependencies, and what to do when they fail.

A plan is data. It names handlers, which are registered in Python (`handlers.py`), and holds no code. What can only be
checked against the handlers (types, unknown names, cycles) is checked by `checks.compile_plan`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, Field, ValidationError

from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.plans.errors import PlanError
from midstream.plans.values import HEADS

FORMAT = 1
"""Version of the document format."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
LONGEST_NAME = 200
HANDLER = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]{0,99})(?:@([1-9]\d{0,8}))?")


def _node_id(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("use letters, digits, _ and -, at most 64, beginning with a letter")
    if text in HEADS:
        raise ValueError(f"'{text}' is a word of references; choose another id")
    return text


def _plan_name(text: str) -> str:
    if len(text) > LONGEST_NAME or not text.isprintable():
        raise ValueError(f"use at most {LONGEST_NAME} printable characters")
    return text


def _handler_name(text: str) -> str:
    if not HANDLER.fullmatch(text):
        raise ValueError("a handler is 'name' or 'name@version', such as 'book_flight@2'")
    return text


PlanName = Annotated[str, AfterValidator(_plan_name)]
NodeId = Annotated[str, AfterValidator(_node_id)]
HandlerName = Annotated[str, AfterValidator(_handler_name)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Retry(Config):
    """Attempts after transient failures, and rounds of feedback after correctable ones."""

    attempts: Annotated[int, Field(ge=1)] = 3
    """Attempts in all, the first one included."""
    first_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Seconds before the second attempt."""
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """Each wait is the one before times this."""
    longest_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Longest wait in seconds."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the wait that is random: 0.5 waits between half and all of it."""
    corrections: Count = 2
    """Further attempts after correctable failures; they wait for nothing and do not count as retries."""


class Fallback(Config):
    """Another handler, tried when those before it failed for good."""

    handler: HandlerName
    args: dict[str, Any] | None = None
    """Arguments; None takes those of the node."""
    timeout_s: Seconds | None = None


class Compensate(Config):
    """Undoes a node. Its handler must be idempotent: it is repeated under the same key until its outcome is known.

    Parameters of the handler named `args`, `output` and `error` receive those of the node."""

    handler: HandlerName
    args: dict[str, Any] = {}
    """Further arguments; references may start with `args`, `output`, `error` or `input`."""
    timeout_s: Seconds | None = None
    retry: Retry = Retry(attempts=5)
    partial: bool = False
    """Also run when the node failed or was cancelled after at least one `ctx.step` of it had succeeded."""


class Map(Config):
    """Runs the node once for each element of a list, at the same time."""

    over: Any
    """The list: a value or a reference. In the node's arguments, `item` and `index` stand for the element."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Most elements at once; None leaves it to the other limits."""
    min_succeeded: Count | None = None
    """Elements that must succeed; None means all. Outputs of the others are null."""


class Loop(Config):
    """Repeats the node. In its arguments `previous` is the last round's output (null at first) and `round` counts from
    1."""

    max_rounds: Annotated[int, Field(ge=1, le=100_000)]
    until: Any = None
    """Condition that ends the loop, over `output` and `round`. None runs all rounds."""
    on_limit: Literal["fail", "accept"] = "fail"
    """What the node does when `max_rounds` pass and `until` never held."""
    stall_after: Annotated[int, Field(ge=1)] | None = 5
    """Fail when this many rounds in a row return nothing that was not returned before: the loop makes no progress."""


class Approval(Config):
    """Asks a person before the node starts; a refusal is a permanent failure."""

    prompt: str = ""
    expires_s: Seconds | None = None


class Node(Config):
    """One unit of a plan: a call of a handler or a sub-plan, possibly mapped over a list or repeated."""

    id: NodeId
    handler: HandlerName | None = None
    """Name of the handler, with its version or without: then the newest one when the run starts."""
    plan: Plan | None = None
    """A sub-plan in place of a handler. `args` are its input. It is a scope: when it fails, what succeeded in it is
    compensated before the node counts as failed."""
    args: dict[str, Any] = {}
    """Arguments by parameter name. References to nodes make those dependencies."""
    after: tuple[NodeId, ...] = ()
    """Dependencies whose output is not used."""
    join: Literal["all", "any", "settled"] | Annotated[int, Field(ge=1)] = "all"
    """When it may start: `all` dependencies succeeded, `any` one, a number of them (a quorum), or all are `settled`,
    however they ended. A join that can no longer be met skips the node."""
    cancel_rest: bool = False
    """With `any` or a quorum: cancel the dependencies that have not started, and that no other node waits for, once
    the join is met. Those that run come to their end."""
    when: Any = None
    """Condition; the node is skipped where it does not hold."""
    map: Map | None = None
    loop: Loop | None = None
    """Together with `map`, each element has its own loop."""
    retry: Retry = Retry()
    timeout_s: Seconds | None = None
    """Seconds an attempt may take; None takes the handler's own."""
    fallback: tuple[Fallback, ...] = ()
    on_failure: Literal["fail", "continue"] = "fail"
    """`continue` lets the plan go on without this node."""
    compensate: Compensate | None = None
    irreversible: bool = False
    """Its effect cannot be undone; a rollback reports it."""
    approval: Approval | None = None
    savepoint: str | None = None
    """Name under which a rollback can return to the moment this node succeeded."""
    resources: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Units of limited resources it holds while it runs."""
    budget: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Limits of what calls in this node report with `ctx.spend`, over its attempts, fallbacks, elements, rounds and the
    nodes of its sub-plan. A call that goes above one fails for good."""
    role: str | None = None
    """Module role that acts in this node; handlers see it."""


class Replan(Config):
    """Writes a new revision when a node failed for good. The handler's parameters named `plan`, `failed`, `error` and
    `states` receive the plan, the id of the failed node, its error, and the state of every node; it returns a plan."""

    handler: HandlerName
    args: dict[str, Any] = {}
    timeout_s: Seconds | None = None
    retry: Retry = Retry()


class Budgets(Config):
    """How often a run may use each remedy, over all its nodes. They are independent of each other."""

    retries: Count = 1000
    fallbacks: Count = 100
    replans: Count = 2
    rollbacks: Count = 1
    """Automatic rollbacks to `rollback_to`."""
    starts: Count = 1_000_000
    """Handler calls in all."""
    recoveries: Count = 20
    """How often a node's worker may die while the node runs, before the node fails: it may be what kills it. The same
    limit applies to each of its fallbacks and to its compensation."""
    spend: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Limits of what handlers report with `ctx.spend`: tokens, cost, calls."""


class Plan(Config):
    """A graph of nodes."""

    format: Literal[1] = FORMAT
    name: PlanName = "plan"
    nodes: tuple[Node, ...] = Field(min_length=1)
    inputs: dict[str, dict[str, Any]] | None = None
    """JSON schemas of the input by name, all required; None accepts any input."""
    output: Any = None
    """Value of the whole plan, with references; None is a mapping from each node that no other depends on to its
    output."""
    on_failure: Literal["compensate", "stop"] = "compensate"
    """`stop` leaves what succeeded as it is; the failed run can be resumed or rolled back."""
    replan: Replan | None = None
    rollback_to: str | None = None
    """Savepoint to return to, and to try again from, when a node failed for good and no new plan could be had."""
    budgets: Budgets = Budgets()
    """Of the run. Those of a sub-plan do not apply."""
    max_concurrency: Annotated[int, Field(ge=1)] | None = None
    limits: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Units of each resource that this run may hold at once."""
    deadline_s: Seconds | None = None
    """Seconds from the start after which the run fails."""

    def as_json(self) -> str:
        """Canonical JSON: the same plan always gives the same text."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()


def load_plan(source: Plan | Mapping[str, Any] | str | Path) -> Plan:
    """Return the plan in a mapping or a JSON or YAML file. Raises `PlanError` that names the node of each problem."""
    if isinstance(source, Plan):
        return source
    if isinstance(source, Mapping):
        return _parse(source, str(source.get("name", "plan")))
    try:
        text = Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the plan '{source}': {error.strerror}", "give a JSON or YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the plan '{source}' is not UTF-8 text", "give a JSON or YAML file") from None
    try:
        data = json.loads(text) if Path(source).suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"'{source}' is not valid JSON or YAML: {error}") from None
    return _parse(data, str(source))


def _parse(data: Any, name: str) -> Plan:
    try:
        plan = Plan.model_validate(data)
        if (number := _non_finite(data)) is not None:  # JSON has no such number, and would make it null
            raise PlanError(name, [f"{number} is not a number in JSON"])
        return plan
    except ValidationError as error:
        raise PlanError(name, [_problem(data, item["loc"], item["msg"]) for item in error.errors()]) from None
    except RecursionError:
        raise PlanError(name, ["it is nested too deeply"]) from None


def _non_finite(data: Any) -> float | None:
    """A number in `data` that JSON lacks; None if there is none."""
    waiting: list[Any] = [data]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return one
        if isinstance(one, Mapping):
            waiting.extend(cast("Mapping[str, Any]", one).values())
        elif isinstance(one, list | tuple):
            waiting.extend(cast("list[Any]", one))
    return None


def _problem(data: Any, location: tuple[int | str, ...], message: str) -> str:
    """A pydantic error with the node's id in place of its number."""
    where: list[str] = []
    at: Any = data
    for part in location:
        at = at[part] if _has(at, part) else None
        if isinstance(part, int) and isinstance(at, dict) and isinstance(at.get("id"), str):
            where[-1:] = [f"node '{at['id']}'"]
        else:
            where.append(str(part))
    return f"{': '.join(where)}: {message.removeprefix('Value error, ')}"


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)  # pyright: ignore[reportUnknownArgumentType]
