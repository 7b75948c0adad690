"""A workflow under change: edits work on one of its ends, and two workflows can be joined by a branch.

An end is a list of statements that returns the answer: the whole body, or one side of a final branch whose sides both
return.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from midstream.workflows import ir
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.run.evaluate import Evaluator, WorkflowFailed

BranchPath = tuple[bool, ...]
"""Where an end is: for each final branch from the outside in, whether it is on the side of a true condition."""

PROBLEM = ir.Input("problem")


class Draft:
    """A workflow under change at one end. `pool` holds prompts that edits may use, `problems` texts of problems."""

    def __init__(
        self,
        workflow: ir.Workflow,
        operators: OperatorSet,
        pool: Mapping[str, str],
        place: BranchPath = (),
        problems: Sequence[str] = (),
    ) -> None:
        self.operators, self.pool, self.problems = operators, pool, problems
        self.instances = list(workflow.instances)
        self.prompts = dict(workflow.prompts)
        self.inputs = workflow.inputs
        self.body = list(_at(workflow.body, place))
        self._whole, self._place = workflow.body, place

    def workflow(self) -> ir.Workflow:
        """The changed workflow, without what it no longer uses."""
        return trimmed(ir.Workflow(tuple(self.instances), self._full(), self.prompts, self.inputs))

    @property
    def returned(self) -> ir.Expression | None:
        """The value of the end's return; None when it ends otherwise."""
        last = self.body[-1] if self.body else None
        return last.value if isinstance(last, ir.Return) else None

    def use(self, operator: str) -> str:
        """The name of an instance of `operator`, declared if need be; "" when there is no such operator."""
        if operator not in self.operators:
            return ""
        found = next((one.name for one in self.instances if one.operator == operator), None)
        if found is None:
            snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in operator).strip("_")
            found = free(snake, {one.name for one in self.instances})
            self.instances.append(ir.Instance(found, operator))
        return found

    def prompt(self, rng: random.Random) -> ir.Prompt:
        """One of the pool."""
        name = rng.choice(sorted(self.pool))
        self.prompts[name] = self.pool[name]
        return ir.Prompt(name)

    def variable(self, wish: str) -> str:
        """A name that no variable has."""
        taken: set[str] = set()
        for one in ir.walk(self._full()):
            taken |= {getattr(one, "target", ""), getattr(one, "variable", "")}
            taken |= {one.name} if isinstance(one, ir.Variable) else set()
        return free(wish, taken)

    def finish(self, made: Sequence[ir.Statement], value: ir.Expression) -> None:
        """Put statements before the return, and return another value."""
        self.body[-1:] = [*made, ir.Return(value)]

    def _full(self) -> tuple[ir.Statement, ...]:
        return _with(self._whole, self._place, tuple(self.body))


def ends(body: Sequence[ir.Statement]) -> list[BranchPath]:
    """The places of all ends of a body."""
    last = body[-1] if body else None
    if isinstance(last, ir.Branch) and _returns(last.then) and _returns(last.otherwise):
        sides = ((True, last.then), (False, last.otherwise))
        return [(side, *place) for side, statements in sides for place in ends(statements)]
    return [()]


def reached(workflow: ir.Workflow, problem: str) -> BranchPath | None:
    """The end that a problem reaches; None when it depends on more than the problem's text."""
    evaluator = Evaluator({"problem": problem}, workflow.prompts, WorkflowLimits())
    body, place = workflow.body, list[bool]()
    while ends(body) != [()]:
        last = body[-1]
        assert isinstance(last, ir.Branch)
        try:
            side = bool(evaluator.value(last.condition, {}))
        except WorkflowFailed:
            return None
        place.append(side)
        body = last.then if side else last.otherwise
    return tuple(place)


def joined(condition: ir.Expression, then: ir.Workflow, otherwise: ir.Workflow) -> ir.Workflow | None:
    """The workflow that does as `then` where the condition on the problem holds, else as `otherwise`. None when they
    give one operator different prompts, which one workflow cannot."""
    if not _returns(then.body) or not _returns(otherwise.body) or then.inputs != otherwise.inputs:
        return None
    instances, prompts = list(otherwise.instances), dict(otherwise.prompts)
    named: dict[str, str] = {}
    for one in then.instances:
        same = (other.name for other in instances if replace(other, name=one.name) == one)
        name = next(same, None) or free(one.name, {other.name for other in instances})
        if name not in {other.name for other in instances}:
            instances.append(replace(one, name=name))
        named[one.name] = name
    own = {one.name for one in (*then.instances, *otherwise.instances)}
    own |= {one.operator for one in (*then.instances, *otherwise.instances)}
    if any(then.prompts.get(name) != otherwise.prompts.get(name) for name in own):
        return None
    for name, text in then.prompts.items():
        named_prompt = name if prompts.get(name, text) == text else free(name, set(prompts) | set(then.prompts))
        prompts[named_prompt] = text
        named[f"prompt {name}"] = named_prompt
    sides = tuple(_renamed(one, named) for one in then.body), otherwise.body
    body = ir.Branch(condition, _given(sides[0], condition, True), _given(sides[1], condition, False))
    return trimmed(ir.Workflow(tuple(instances), (body,), prompts, then.inputs))


def trimmed(workflow: ir.Workflow) -> ir.Workflow:
    """The workflow without instances and prompts that it does not use."""
    used = {one.instance for one in ir.walk(workflow.body) if isinstance(one, ir.Invoke)}
    instances = [one for one in workflow.instances if one.name in used]
    named = {one.name for one in ir.walk(workflow.body) if isinstance(one, ir.Prompt)}
    named |= {one.name for one in instances} | {one.operator for one in instances}
    prompts = {name: text for name, text in workflow.prompts.items() if name in named}
    return ir.Workflow(tuple(instances), workflow.body, prompts, workflow.inputs)


def free(wish: str, taken: set[str]) -> str:
    """`wish`, with a number when it is taken."""
    return wish if wish not in taken else next(name for n in range(2, 1000) if (name := f"{wish}_{n}") not in taken)


def rebuilt(tree: ir.Statement, old: object, new: object) -> ir.Statement:
    """`tree` with the node that is `old` (by identity) replaced."""
    if tree is old:
        return new  # pyright: ignore[reportReturnType]
    if isinstance(tree, ir.Loop):
        over = new if tree.over is old else tree.over
        return replace(tree, over=over, body=tuple(rebuilt(one, old, new) for one in tree.body))
    if isinstance(tree, ir.Branch):
        then = tuple(rebuilt(one, old, new) for one in tree.then)
        return replace(tree, then=then, otherwise=tuple(rebuilt(one, old, new) for one in tree.otherwise))
    if isinstance(tree, ir.InvokeEach):
        over = new if tree.over is old else tree.over
        return replace(tree, over=over, invoke=new if tree.invoke is old else tree.invoke)
    if isinstance(tree, ir.Parallel):
        return replace(tree, branches=tuple(new if one is old else one for one in tree.branches))
    return tree


def _returns(body: Sequence[ir.Statement]) -> bool:
    last = body[-1] if body else None
    if isinstance(last, ir.Branch):
        return _returns(last.then) and _returns(last.otherwise)
    return isinstance(last, ir.Return)


def _given(body: tuple[ir.Statement, ...], condition: ir.Expression, holds: bool) -> tuple[ir.Statement, ...]:
    """The statements without final branches whose condition is known."""
    last = body[-1]
    if not isinstance(last, ir.Branch):
        return body
    if last.condition == condition:
        return (*body[:-1], *_given(last.then if holds else last.otherwise, condition, holds))
    then, otherwise = (_given(side, condition, holds) if side else side for side in (last.then, last.otherwise))
    return (*body[:-1], replace(last, then=then, otherwise=otherwise))


def _at(body: tuple[ir.Statement, ...], place: BranchPath) -> tuple[ir.Statement, ...]:
    for side in place:
        last = body[-1]
        assert isinstance(last, ir.Branch)
        body = last.then if side else last.otherwise
    return body


def _with(body: tuple[ir.Statement, ...], place: BranchPath, end: tuple[ir.Statement, ...]) -> tuple[ir.Statement, ...]:
    if not place:
        return end
    last = body[-1]
    assert isinstance(last, ir.Branch)
    if place[0]:
        changed = replace(last, then=_with(last.then, place[1:], end))
    else:
        changed = replace(last, otherwise=_with(last.otherwise, place[1:], end))
    return (*body[:-1], changed)


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    """`tree` with other names of instances, and of prompts (`prompt NAME`)."""
    if isinstance(tree, tuple):
        return tuple(_renamed(one, names) for one in tree)
    if isinstance(tree, ir.Prompt):
        return replace(tree, name=names.get(f"prompt {tree.name}", tree.name))
    if not hasattr(tree, "__dataclass_fields__"):
        return tree
    changed = {name: _renamed(getattr(tree, name), names) for name in tree.__dataclass_fields__}
    if isinstance(tree, ir.Invoke):
        changed["instance"] = names.get(tree.instance, tree.instance)
    return replace(tree, **changed)
