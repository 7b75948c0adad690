"""Values for an instance: what its references stand for, its arguments, and its condition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from midstream.plans.errors import Permanent
from midstream.plans.instances import Instance, Shape
from midstream.plans.misfit import misfit
from midstream.plans.payloads import Payloads
from midstream.plans.plan import Plan
from midstream.plans.states import NodeState
from midstream.plans.values import Lookup, holds, refs_in, resolve
from midstream.store.exact_json import from_json, to_json


async def lookup(payloads: Payloads, one: Instance, used: Iterable[Any], root_input: str) -> Lookup:
    """Load what the values `used` refer to. Outputs of nodes that did not succeed are null; a
    compensation sees those of nodes that were compensated since."""
    known: dict[str, Any] = {}
    for head in {ref.head for value in used for ref in refs_in(value)}:
        known[head] = await _value(payloads, one, head, root_input)
    return known.__getitem__


async def _value(payloads: Payloads, one: Instance, head: str, root_input: str) -> Any:
    frame = one.frame if one.siblings is None else one.siblings
    if frame is not None and head in frame.instances:
        other = frame.instances[head]
        undone = one.state is NodeState.COMPENSATING and other.row.output  # it had succeeded when `one` ran
        return await payloads.load(other.row.output) if other.state is NodeState.SUCCEEDED or undone else None
    if head == "input":
        owner = None if frame is None else frame.owner
        return await payloads.load(root_input if owner is None or not owner.path else owner.row.bindings)
    at = one
    while at.parent is not None and at.level:
        shape = at.parent.shape
        if shape is Shape.MAP and head in ("item", "index"):
            return from_json(at.item) if head == "item" else at.index
        if shape is Shape.LOOP and head == "round":
            return at.index
        if shape is Shape.LOOP and head == "previous":
            before = at.parent.children[at.index - 2] if at.index > 1 else None
            return None if before is None else await payloads.load(before.row.output)
        at = at.parent
    raise Permanent(f"'{head}' stands for nothing here")


async def arguments(payloads: Payloads, one: Instance, args: dict[str, Any], root_input: str) -> dict[str, Any]:
    """The arguments of a call of `one`, or the input of its sub-plan. Raises `Permanent` for a reference that leads
    nowhere."""
    return cast("dict[str, Any]", resolve(args, await lookup(payloads, one, [args], root_input)))


async def condition(payloads: Payloads, one: Instance, root_input: str) -> bool:
    """Whether the node's `when` holds."""
    when, frame = one.node.when, one.siblings
    assert frame is not None
    found = await lookup(payloads, one, [when], root_input)
    return holds(when, found, lambda name: str(frame.instances[name].state))


async def ends(payloads: Payloads, loop: Instance, last: Instance, root_input: str) -> bool:
    """Whether the loop's `until` holds after the round `last`."""
    assert loop.node.loop is not None
    if (until := loop.node.loop.until) is None:
        return False
    inner: dict[str, Any] = {"output": await payloads.load(last.row.output), "round": last.index}
    used = [ref for ref in refs_in(until) if ref.head not in inner]
    outer = await lookup(payloads, loop, [{"$ref": str(ref)} for ref in used], root_input)
    return holds(until, lambda head: inner[head] if head in inner else outer(head), lambda name: "")


async def output(payloads: Payloads, owner: Instance, root_input: str) -> str:
    """JSON text of what a container returns, from what is below it."""
    if owner.shape is Shape.MAP:
        texts = [await payloads.text(one.row.output) if one.row.output else "null" for one in owner.children]
        return f"[{','.join(texts)}]"
    if owner.shape is Shape.LOOP:
        return await payloads.text(owner.children[-1].row.output)
    frame = owner.frame
    assert frame is not None
    wanted = frame.compiled.plan.output
    if wanted is None:
        wanted = {name: {"$ref": [name]} for name in frame.compiled.sinks}
    inside = next(iter(frame.instances.values()))
    value = resolve(wanted, await lookup(payloads, inside, [wanted], root_input))
    return to_json(value, f"output of '{owner.path or 'the plan'}'")


def check_input(plan: Plan, value: Any, where: str) -> None:
    """Raise `Permanent` unless `value` has what the plan's `inputs` declare."""
    if plan.inputs is None:
        return
    if not isinstance(value, dict):
        raise Permanent(f"the input of {where} must be a mapping with: {', '.join(plan.inputs)}")
    given = cast("dict[str, Any]", value)
    if wrong := sorted(given.keys() ^ plan.inputs.keys()):
        raise Permanent(
            f"the input of {where} must have exactly these names: {', '.join(plan.inputs)}; see '{wrong[0]}'"
        )
    for name, schema in plan.inputs.items():
        if problem := misfit(given[name], schema):
            raise Permanent(f"input '{name}' of {where}: {problem}")
