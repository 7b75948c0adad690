"""What a planner writes: a short JSON list of steps, checked with messages it can act on, and compiled to a `Plan`.

    {"steps": [{"tool": "search", "args": {"query": "price of tea"}},
               {"tool": "calculator", "args": {"expression": "3 * {s1}"}}]}

A step calls a tool, or gives the executor a `task`. `{id}` in its texts stands for the result of that step. The ids of
steps that have none are `s1`, `s2` and so on, by their place. In a chain each step follows the one before; in a graph
`needs` and the results it uses say what it waits for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from midstream.core.errors import MidstreamError, nearest
from midstream.core.toolsets import ToolSpec
from midstream.plans import NodeState
from midstream.plans.plan import NAME
from midstream.plans.values import HEADS
from midstream.tools.calls import hoisted

Strategy = Literal["chain", "tree", "graph"]
MOST_STEPS = 64
DEEPEST = 64
"""Limit on the nesting of lists and objects in a plan."""
_MENTION = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")


class UnreadablePlan(MidstreamError):
    """The planner's text is not a plan. The message says what to change."""


class PlannedStep(BaseModel):
    """One step of a planner's plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    tool: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    task: str = ""
    """What the executor is to do, for a step without a tool."""
    needs: tuple[str, ...] = ()
    join: Literal["all", "any", "settled"] = "all"
    """Which of the steps in `needs` must succeed. `settled` waits for all, however they end."""

    @property
    def mentions(self) -> list[str]:
        """Names in braces in its texts, each once."""
        return list(dict.fromkeys(_MENTION.findall(json.dumps([self.args, self.task], ensure_ascii=False))))

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)


class _Steps(BaseModel):
    model_config = ConfigDict(extra="forbid")

    steps: list[PlannedStep] = Field(min_length=1, max_length=MOST_STEPS)


def read_steps(
    text: str,
    tools: Mapping[str, ToolSpec],
    *,
    strategy: Strategy,
    tasks: bool = True,
    most: int = MOST_STEPS,
    done: Collection[str] = (),
) -> list[PlannedStep]:
    """Return the steps in a planner's `text`. `tasks` says whether there is an executor for them; `done` are ids of
    earlier steps whose results can be used. Raises `UnreadablePlan` with everything that is wrong."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnreadablePlan('write one JSON object: {"steps": [...]}')
    if problem := _not_plain(found):
        raise UnreadablePlan(problem)
    try:
        steps = _Steps.model_validate(_numbered(found, len(done) + 1)).steps
    except ValidationError as error:
        raise UnreadablePlan("; ".join(_explained(item) for item in error.errors()[:4])) from None
    problems = list(_problems(steps, tools, strategy, tasks, most, done))
    if problems:
        raise UnreadablePlan("; ".join(problems[:6]))
    return steps


def _not_plain(found: Any) -> str:
    """What keeps a parsed text from being kept as JSON; empty if nothing does."""
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, float) and not math.isfinite(one):
                return f"{one} is not a number in JSON"
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if not inner:
            return ""
        level = inner
    return f"lists and objects are nested more than {DEEPEST} deep"


def _numbered(plan: Mapping[str, Any], first: int) -> dict[str, Any]:
    """`plan`, its steps without an id called by their place; the first one has the number `first`."""
    steps = plan.get("steps")
    if not isinstance(steps, list):
        return dict(plan)
    named = [
        {"id": f"s{number}", **step} if isinstance(step, dict) else step for number, step in enumerate(steps, first)
    ]
    return {**plan, "steps": named}


def _explained(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    return f"{where or 'the plan'}: {error['msg']}"


def _problems(
    steps: Sequence[PlannedStep],
    tools: Mapping[str, ToolSpec],
    strategy: Strategy,
    tasks: bool,
    most: int,
    done: Collection[str],
) -> Iterator[str]:
    if len(steps) > most:
        yield f"at most {most} steps are allowed, and these are {len(steps)}"
    ids = [step.id for step in steps]
    for place, step in enumerate(steps):
        where = f"step '{step.id[:64]}'"
        if not NAME.fullmatch(step.id) or step.id in HEADS:
            yield f"{where}: an id is a name such as 'price', of letters, digits, _ and -"
        if ids.count(step.id) > 1 and ids.index(step.id) == place:
            yield f"{where}: another step has the same id"
        if bool(step.tool) == bool(step.task):
            yield f"{where}: give either a tool or a task"
        elif step.task and not tasks:
            yield f"{where}: nobody carries out tasks; use a tool: {', '.join(tools)}"
        elif step.tool and step.tool not in tools:
            yield f"{where}: unknown tool '{step.tool[:64]}'; {nearest(step.tool[:64], tools)}"
        elif step.tool:
            yield from (f"{where}: {problem}" for problem in _arguments(step, tools[step.tool]))
        before = {*done, *(ids[:place] if strategy != "graph" else [name for name in ids if name != step.id])}
        for name in (*step.needs, *step.mentions):
            if name not in before and (name in ids or name in step.needs):
                yield f"{where}: it uses '{name}', which is no {'other' if strategy == 'graph' else 'earlier'} step"
        if strategy != "graph" and step.needs:
            yield f"{where}: the steps run one after another; leave out needs"
    if strategy == "graph" and (cycle := _cycle(steps)):
        yield f"the steps wait for each other in a circle: {' -> '.join(cycle)}"


def _arguments(step: PlannedStep, tool: ToolSpec) -> Iterator[str]:
    """What can be said of the arguments before the results they use are known."""
    properties = tool.parameters.get("properties", {})
    for name in step.args:
        if name not in properties:
            yield f"'{tool.name}' has no parameter '{name[:64]}'; use {tool.signature}"
    for name in tool.parameters.get("required", ()):
        if name not in step.args:
            yield f"'{tool.name}' needs '{name}'; use {tool.signature}"


def _cycle(steps: Sequence[PlannedStep]) -> list[str]:
    left = {step.id: [*step.needs, *step.mentions] for step in steps}
    while left:
        free = [name for name, needs in left.items() if not any(one in left for one in needs)]
        if not free:
            path = [next(iter(left))]
            while path.count(path[-1]) < 2:
                path.append(next(one for one in left[path[-1]] if one in left))
            return path[path.index(path[-1]) :]
        for name in free:
            del left[name]
    return []


def renamed(steps: Sequence[PlannedStep], kept: Mapping[str, PlannedStep]) -> list[PlannedStep]:
    """Give steps whose id an earlier step has, with another content, an id of their own; steps that are kept as they
    are stay out."""
    names: dict[str, str] = {}
    for step in steps:
        if step.id in kept and kept[step.id] != step:
            number = 2
            while f"{step.id}_{number}" in kept or any(other.id == f"{step.id}_{number}" for other in steps):
                number += 1
            names[step.id] = f"{step.id}_{number}"

    def move(value: Any) -> Any:
        if isinstance(value, str):
            return _MENTION.sub(lambda match: f"{{{names.get(match[1], match[1])}}}", value)
        if isinstance(value, Mapping):
            return {key: move(item) for key, item in value.items()}
        return [move(item) for item in value] if isinstance(value, list) else value

    return [
        step.model_copy(
            update={
                "id": names.get(step.id, step.id),
                "args": move(step.args),
                "task": move(step.task),
                "needs": tuple(names.get(name, name) for name in step.needs),
            }
        )
        for step in steps
        if step.id in names or step.id not in kept
    ]


def compile_steps(
    steps: Sequence[PlannedStep],
    strategy: Strategy,
    *,
    kept: Sequence[PlannedStep] = (),
    earlier: Mapping[str, Any] | None = None,
    undo: Mapping[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the plan of `steps`, after those that are `kept` of the revision before. `earlier` are results of other
    plans, by id. `undo` are tools that undo others, by name; `fields` are fields of the plan."""
    nodes: list[dict[str, Any]] = []
    known = {step.id for step in (*kept, *steps)}
    before: list[str] = []
    literals = {name: {"$literal": value} for name, value in (earlier or {}).items()}
    for step in (*kept, *steps):
        named = list(dict.fromkeys((*step.needs, *step.mentions)))
        used = [name for name in named if name in known]
        after = used if strategy == "graph" else before[-1:]
        node: dict[str, Any] = {
            "id": step.id,
            "handler": "tool" if step.tool else "task",
            "args": {
                "step": {"$literal": step.as_json()},
                "given": {name: literals[name] for name in named if name in literals and name not in known}
                | {name: {"$ref": [name], "default": ""} for name in used},
            },
            "after": after,
            "retry": {"attempts": 1, "corrections": 0},
        }
        if step.join != "all" and after:
            node["join"] = step.join
        if step.task:
            node["role"] = "executor"
        if step.tool and undo and step.tool in undo:
            node["compensate"] = {"handler": "undo"}
        nodes.append(node)
        before.append(step.id)
    return {"name": strategy, "nodes": nodes, **fields}


def kept_steps(plan: Mapping[str, Any], states: Mapping[str, str]) -> list[PlannedStep]:
    """The steps of a plan that a new one keeps: done, or under way."""
    gone = {str(state) for state in (NodeState.PENDING, NodeState.READY, NodeState.RETRYING, NodeState.FAILED)}
    gone |= {str(state) for state in (NodeState.SKIPPED, NodeState.CANCELLED, NodeState.COMPENSATED)}
    return [step for step in steps_of(plan) if states.get(step.id, str(NodeState.PENDING)) not in gone]


def steps_of(plan: Mapping[str, Any]) -> list[PlannedStep]:
    """The steps that a plan was compiled from."""
    return [PlannedStep.model_validate(node["args"]["step"]["$literal"]) for node in plan["nodes"]]


def filled(step: PlannedStep, given: Mapping[str, Any], tool: ToolSpec | None = None) -> PlannedStep:
    """`step` with the results it uses. A text that is only `{id}` becomes the value itself where the tool's parameter
    is not a text."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in given.items()
    }
    properties: Mapping[str, Any] = {} if tool is None else tool.parameters.get("properties", {})

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return _MENTION.sub(lambda match: texts.get(match[1], match[0]), value)
        if isinstance(value, Mapping):
            return {key: fill(item) for key, item in value.items()}
        return [fill(item) for item in value] if isinstance(value, list) else value

    def argument(name: str, value: Any) -> Any:
        text = fill(value)
        schema = properties.get(name, {})
        wants_text = not isinstance(schema, Mapping) or schema.get("type", "string") == "string"
        if not isinstance(value, str) or text == value or wants_text:
            return text
        try:
            return json.loads(text)
        except ValueError:
            return text

    args = {name: argument(name, value) for name, value in step.args.items()}
    return step.model_copy(update={"args": args, "task": fill(step.task)})


def steps_schema(tools: Sequence[ToolSpec], strategy: Strategy, tasks: bool, most: int) -> dict[str, Any]:
    """JSON schema of a plan, for constrained sampling. Any argument may be `{id}`. Only steps of a graph have ids."""
    definitions: dict[str, Any] = {}
    options: list[dict[str, Any]] = []
    name: dict[str, Any] = {}
    more: dict[str, Any] = {}
    if strategy == "graph":
        name = {"id": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,15}$"}}
        more = {"needs": {"type": "array", "items": {"type": "string"}}}
    for tool in tools:
        schema = hoisted(tool.parameters, tool.name, definitions)
        properties = {key: _or_result(one) for key, one in schema.get("properties", {}).items()}
        call = {"tool": {"const": tool.name}, "args": {**schema, "properties": properties}}
        options.append(_object({**name, **call}, more))
    if tasks:
        options.append(_object({**name, "task": {"type": "string"}}, more))
    steps = {"type": "array", "items": {"anyOf": options}, "minItems": 1, "maxItems": most}
    schema = {
        "type": "object",
        "properties": {"steps": steps},
        "required": ["steps"],
        "additionalProperties": False,
    }
    return {**schema, "$defs": definitions} if definitions else schema


def _or_result(schema: Any) -> Any:
    """`schema`, or `{id}`. A text can hold results anyway."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return schema
    return {"anyOf": [schema, {"type": "string", "pattern": r"^\{[A-Za-z_][A-Za-z0-9_-]{0,15}\}$"}]}


def _object(required: Mapping[str, Any], optional: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": [*required],
        "additionalProperties": False,
    }
