"""Checks a plan against the registered handlers, pins their versions, and computes its dependencies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from pydantic import ValidationError

from midstream.plans.errors import PlanError
from midstream.plans.handlers import Handler, Handlers
from midstream.plans.misfit import schema_problem
from midstream.plans.plan import Compensate, Fallback, Node, Plan, Replan
from midstream.plans.values import as_ref, check_condition, nodes_in, refs_in

DEEPEST = 20
"""Most sub-plans inside each other."""
FILLED_IN_UNDO = frozenset({"args", "output", "error"})
FILLED_IN_REPLAN = frozenset({"plan", "failed", "error", "states"})


@dataclass(frozen=True, eq=False)
class Compiled:
    """A checked plan with its dependencies."""

    plan: Plan
    nodes: Mapping[str, Node]
    dependencies: Mapping[str, tuple[str, ...]]
    dependents: Mapping[str, tuple[str, ...]]
    inner: Mapping[str, Compiled] = field(default_factory=dict)
    """Sub-plans by the id of their node."""

    @cached_property
    def sinks(self) -> tuple[str, ...]:
        """Nodes that no other depends on."""
        return tuple(name for name in self.nodes if not self.dependents[name])


def compile_plan(plan: Plan, handlers: Handlers | None, limits: Mapping[str, int] | None = None) -> Compiled:
    """Check `plan`. `handlers` None checks its structure only. `limits` are the resources of the executor.

    Raises `PlanError` with every problem and the node it is in.
    """
    problems: list[str] = []
    units = None if limits is None else _units(limits, plan.limits)
    compiled = _compile(plan, handlers, units, "", problems, 0)
    if problems:
        raise PlanError(plan.name, problems)
    return compiled


def _units(*limits: Mapping[str, int]) -> dict[str, int]:
    """Units of each resource that a node can ever hold."""
    names = {name for one in limits for name in one}
    return {name: min(one[name] for one in limits if name in one) for name in names}


def pinned(plan: Plan, handlers: Handlers) -> Plan:
    """`plan` with the version of every handler it names; one without a version gets the newest."""

    def pin(name: str) -> str:
        found = handlers.get(name)
        return found.full_name if found is not None else name

    def pin_node(node: Node) -> Node:
        changes: dict[str, Any] = {}
        if node.handler is not None:
            changes["handler"] = pin(node.handler)
        if node.plan is not None:
            changes["plan"] = pinned(node.plan, handlers)
        if node.compensate is not None:
            changes["compensate"] = node.compensate.model_copy(update={"handler": pin(node.compensate.handler)})
        if node.fallback:
            changes["fallback"] = tuple(one.model_copy(update={"handler": pin(one.handler)}) for one in node.fallback)
        return node.model_copy(update=changes)

    changes: dict[str, Any] = {"nodes": tuple(map(pin_node, plan.nodes))}
    if plan.replan is not None:
        changes["replan"] = plan.replan.model_copy(update={"handler": pin(plan.replan.handler)})
    return plan.model_copy(update=changes)


def handlers_of(plan: Plan, done: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Names of all handlers in a plan, with the path of the node that names each. Of the nodes `done`, only what undoes
    them."""
    for node in plan.nodes:
        if node.compensate is not None:
            yield node.compensate.handler, node.id
        if node.id in done and node.plan is None:
            continue
        if node.handler is not None:
            yield node.handler, node.id
        yield from ((one.handler, node.id) for one in node.fallback)
        if node.plan is not None:
            yield from ((name, f"{node.id}/{path}") for name, path in handlers_of(node.plan))
    if plan.replan is not None:
        yield plan.replan.handler, "replan"


def compensations_of(plan: Plan) -> Iterator[tuple[str, str]]:
    """Names of the handlers that undo nodes of a plan, with the path of the node that names each."""
    for node in plan.nodes:
        if node.compensate is not None:
            yield node.compensate.handler, node.id
        if node.plan is not None:
            yield from ((name, f"{node.id}/{path}") for name, path in compensations_of(node.plan))


def _compile(
    plan: Plan,
    handlers: Handlers | None,
    units: Mapping[str, int] | None,
    prefix: str,
    problems: list[str],
    depth: int,
) -> Compiled:
    nodes: dict[str, Node] = {}
    dependencies: dict[str, tuple[str, ...]] = {}
    inner: dict[str, Compiled] = {}
    unreadable: set[str] = set()
    if depth > DEEPEST:
        problems.append(f"node '{prefix.rstrip('/')}': more than {DEEPEST} plans inside each other")
        return Compiled(plan, {}, {}, {})
    for node in plan.nodes:
        if node.id in nodes:
            problems.append(f"node '{prefix}{node.id}': another node has the same id")
        nodes[node.id] = node
    for node in nodes.values():
        where = f"node '{prefix}{node.id}'"
        try:
            dependencies[node.id] = tuple(_dependencies(node, nodes))
            problems.extend(f"{where}: {problem}" for problem in _structure(node, plan, nodes))
        except ValueError as error:
            problems.append(f"{where}: {error}")
            dependencies[node.id] = ()
            unreadable.add(node.id)
        if node.plan is not None:
            inner[node.id] = _compile(node.plan, handlers, units, f"{prefix}{node.id}/", problems, depth + 1)
        if units is not None:
            problems.extend(f"{where}: {problem}" for problem in _resources(node, units))
    if cycle := _cycle(dependencies):
        problems.append(f"node '{prefix}{cycle[0]}': it depends on itself: {' -> '.join(cycle)}")
    try:
        for ref in refs_in(plan.output):
            if ref.head not in nodes and ref.head != "input":
                problems.append(f"{prefix or 'the plan'}: its output refers to '{ref.head}', which is no node")
    except ValueError as error:
        problems.append(f"{prefix or 'the plan'}: output: {error}")
    savepoints = {node.savepoint for node in nodes.values()} - {None}
    if plan.rollback_to is not None and plan.rollback_to not in savepoints:
        problems.append(f"rollback_to: no node has the savepoint '{plan.rollback_to}'")
    if handlers is not None:
        for node in (node for name, node in nodes.items() if name not in unreadable):
            where = f"node '{prefix}{node.id}'"
            problems.extend(f"{where}: {problem}" for problem in _readable(_calls(node, nodes, handlers)))
        if plan.replan is not None:
            problems.extend(f"replan: {problem}" for problem in _readable(_replan(plan.replan, handlers)))
        for name, schema in (plan.inputs or {}).items():
            if problem := schema_problem(schema):
                problems.append(f"{prefix}inputs: {name}: {problem}")
    dependents: dict[str, list[str]] = {name: [] for name in nodes}
    for name, needed in dependencies.items():
        for one in needed:
            if one in dependents:
                dependents[one].append(name)
    return Compiled(plan, nodes, dependencies, {name: tuple(after) for name, after in dependents.items()}, inner)


def _readable(problems: Iterator[str]) -> Iterator[str]:
    """`problems`, with a malformed reference as one of them."""
    try:
        yield from problems
    except ValueError as error:
        yield str(error)


def _resources(node: Node, units: Mapping[str, int]) -> Iterator[str]:
    for name, count in node.resources.items():
        if name not in units:
            yield f"resource '{name}' has no limit; set one in the plan's `limits` or the executor's"
        elif count > units[name]:
            yield f"it needs {count} units of '{name}', and there are {units[name]}: it could never start"


def _replan(replan: Replan, handlers: Handlers) -> Iterator[str]:
    yield from _call(replan, replan.args, handlers, FILLED_IN_REPLAN, {})
    for ref in refs_in(replan.args):
        if ref.head != "input":
            yield f"it may refer to input, not to '{ref.head}'"


def _dependencies(node: Node, nodes: Mapping[str, Node]) -> Iterator[str]:
    """Ids of nodes that `node` waits for, each once. Raises `ValueError` for a reference to nothing."""
    used = [node.args, node.when, node.map.over if node.map else None, *(one.args for one in node.fallback)]
    heads = [ref.head for value in used for ref in refs_in(value)]
    allowed = {"input"}
    if node.map is not None:
        allowed |= {"item", "index"}
        if bad := [ref.head for ref in refs_in(node.map.over) if ref.head in ("item", "index", "previous", "round")]:
            raise ValueError(f"'map.over' cannot refer to '{bad[0]}': there is no element yet")
    if node.loop is not None:
        allowed |= {"previous", "round"}
        for ref in refs_in(node.loop.until):
            if ref.head not in ("output", "round", "input"):
                raise ValueError(f"'loop.until' may refer to 'output', 'round' and 'input', not to '{ref.head}'")
    seen: set[str] = set()
    for name in (*node.after, *heads, *nodes_in(node.when)):
        if name in allowed or name in seen:
            continue
        if name not in nodes:
            raise ValueError(f"it refers to '{name}', which is no node of this plan")
        seen.add(name)
        yield name


def _structure(node: Node, plan: Plan, nodes: Mapping[str, Node]) -> Iterator[str]:
    if (node.handler is None) == (node.plan is None):
        yield "it needs either a handler or a sub-plan"
    if node.plan is not None:
        if node.retry != type(node.retry)():
            yield "a sub-plan is not retried as a whole; set `retry` on its nodes, or `fallback` here"
        if node.resources or node.approval or node.timeout_s:
            yield "resources, approval and timeout_s belong to the nodes of a sub-plan"
        if node.plan.replan or node.plan.rollback_to:
            yield "replan and rollback_to belong to the outermost plan"
    if node.when is not None:
        yield from (f"when: {problem}" for problem in check_condition(node.when))
    if node.loop is not None and node.loop.until is not None:
        yield from (f"loop.until: {problem}" for problem in check_condition(node.loop.until))
    needed = len(tuple(_dependencies(node, nodes)))
    if isinstance(node.join, int) and node.join > needed:
        yield f"its quorum of {node.join} is more than its {needed} dependencies"
    if node.join == "any" and not needed:
        yield "its join 'any' has no dependencies to wait for"
    if node.savepoint is not None and [one.savepoint for one in nodes.values()].count(node.savepoint) > 1:
        yield f"another node has the savepoint '{node.savepoint}'"
    if node.irreversible and node.compensate is not None:
        yield "it is irreversible and has a compensation; remove one"


def _calls(node: Node, nodes: Mapping[str, Node], handlers: Handlers) -> Iterator[str]:
    if node.handler is not None:
        yield from _call(node, node.args, handlers, frozenset(), nodes)
    inner = node.plan
    if inner is not None and (inner.limits or inner.max_concurrency is not None or inner.deadline_s is not None):
        yield "limits, max_concurrency and deadline_s belong to the outermost plan"
    for one in node.fallback:
        args = node.args if one.args is None else one.args
        yield from (f"fallback: {problem}" for problem in _call(one, args, handlers, frozenset(), nodes))
    if (undo := node.compensate) is not None:
        found = (*_call(undo, undo.args, handlers, FILLED_IN_UNDO, {}), *_repeatable(handlers.get(undo.handler)))
        yield from (f"compensate: {problem}" for problem in found)
        allowed = {"args", "output", "error", "input"}
        yield from (
            f"compensate: it may refer to args, output, error and input, not to '{ref.head}'"
            for ref in refs_in(undo.args)
            if ref.head not in allowed
        )


def _repeatable(found: Handler | None) -> Iterator[str]:
    if found is not None and found.effects == "once":
        yield (
            f"'{found.full_name}' has effects 'once', and a compensation is repeated until its outcome is known; "
            "declare effects='idempotent' and use ctx.key, or 'steps'"
        )


def _call(
    call: Node | Fallback | Compensate | Any,
    args: Mapping[str, Any],
    handlers: Handlers,
    filled: frozenset[str],
    nodes: Mapping[str, Node],
) -> Iterator[str]:
    """What is wrong with one call of a handler. `filled` are parameters that the executor fills in."""
    called = str(call.handler)
    found = handlers.get(called)
    if found is None:
        yield f"unknown handler '{called}'; {handlers.hint(called)}"
        return
    for name in args.keys() - found.parameters.keys():
        yield f"'{found.full_name}' has no parameter '{name}'; it has: {', '.join(found.parameters) or 'none'}"
    for name in sorted(found.required - args.keys() - filled):
        yield f"'{found.full_name}' needs the argument '{name}'"
    for name, value in args.items():
        if name in found.parameters:
            yield from _argument(found, name, value, nodes, handlers)


def _argument(found: Handler, name: str, value: Any, nodes: Mapping[str, Node], handlers: Handlers) -> Iterator[str]:
    ref = as_ref(value)
    if ref is None:
        if next(refs_in(value), None) is None and "$literal" not in str(value):
            try:
                found.parameters[name].validate_python(value)
            except ValidationError as error:
                yield f"argument '{name}' of '{found.full_name}': {error.errors()[0]['msg']} (got {value!r})"
        return
    source = nodes.get(ref.head)
    if source is None or source.handler is None or source.map or source.loop or source.fallback or ref.has_default:
        return
    producer = handlers.get(source.handler)
    if producer is None or producer.output_schema is None:
        return
    schema: Any = _resolved(producer.output_schema, producer.output_schema)
    for part in ref.path:
        schema = _step(schema, part, producer.output_schema)
        if schema is None:
            yield f"argument '{name}': '{producer.full_name}' returns nothing at '{ref}'"
            return
    wanted = found.parameter_schemas[name]
    given_types, wanted_types = _types(schema), _types(_resolved(wanted, wanted))
    if given_types and wanted_types and not given_types & wanted_types:
        given, needs = "/".join(sorted(given_types)), "/".join(sorted(wanted_types))
        yield f"argument '{name}' of '{found.full_name}' is {needs}, and '{ref}' is {given}"


def _step(schema: Any, part: str, root: dict[str, Any]) -> Any:
    """The schema one key or index further; {} where anything may follow, None where nothing can."""
    if not isinstance(schema, dict):
        return {}
    known = cast("dict[str, Any]", schema)
    if known.get("type") == "object" and "properties" in known:
        if part in known["properties"]:
            return _resolved(known["properties"][part], root)
        return {} if known.get("additionalProperties") else None
    if known.get("type") == "array" and part.lstrip("-").isdigit():
        return _resolved(known.get("items", {}), root)
    if known.get("type") in ("string", "integer", "number", "boolean", "null"):
        return None
    return {}


def _resolved(schema: Any, root: dict[str, Any]) -> Any:
    if isinstance(schema, dict) and "$ref" in schema:
        name = str(cast("dict[str, Any]", schema)["$ref"]).rpartition("/")[2]
        return root.get("$defs", {}).get(name, {})
    return cast("Any", schema)


def _types(schema: Any) -> set[str]:
    """JSON types a schema allows; empty when that is not plain. Integers pass as numbers, and as text never."""
    if not isinstance(schema, dict):
        return set()
    known = cast("dict[str, Any]", schema)
    if "anyOf" in known:
        parts = [_types(one) for one in known["anyOf"]]
        return set[str]().union(*parts) if all(parts) else set()
    found = known.get("type")
    if not isinstance(found, str):
        return set()
    return {"integer", "number"} if found in ("integer", "number") else {found}


def _cycle(dependencies: Mapping[str, tuple[str, ...]]) -> list[str] | None:
    """One cycle, or None."""
    state: dict[str, int] = {}
    for start in dependencies:
        if start in state:
            continue
        path: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(dependencies[start]))]
        state[start] = 1
        path.append(start)
        while stack:
            name, rest = stack[-1]
            following = next((one for one in rest if state.get(one) != 2), None)
            if following is None:
                stack.pop()
                path.pop()
                state[name] = 2
            elif state.get(following) == 1:
                return [*path[path.index(following) :], following]
            elif following in dependencies:
                state[following] = 1
                path.append(following)
                stack.append((following, iter(dependencies[following])))
            else:
                state[following] = 2
    return None
