"""Random edits of a workflow's graph: for searches without an optimiser model, and as their baseline.

An edit works on the statements before the final `return`; `random_edit` draws edits until one gives a workflow that the
checker accepts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from midstream.workflows import ir
from midstream.workflows.checker import check_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import errors
from midstream.workflows.write_python import write_expression

PROMPT_POOL: Mapping[str, str] = {
    "STEPS": "Think step by step, then give the final answer alone between <answer> and </answer>.",
    "BRIEF": "Give the answer alone, without an explanation.",
    "CHECK": "Solve the problem, check your result once, then give the answer between <answer> and </answer>.",
    "RESTATE": "First restate the problem in your own words, then solve it and give the answer.",
}
"""Prompts that random edits may use."""
TRIES = 40

Edit = Callable[["_Draft", random.Random], str]
"""Changes a draft and says what it did; "" when it cannot."""


def random_edit(
    workflow: ir.Workflow,
    rng: random.Random,
    operators: OperatorSet,
    limits: WorkflowLimits | None = None,
    pool: Mapping[str, str] = PROMPT_POOL,
) -> tuple[ir.Workflow, str] | None:
    """A valid workflow that differs from `workflow` by one edit, and what was changed. None when no edit of `TRIES`
    is valid."""
    for _ in range(TRIES):
        draft = _Draft(workflow, operators, pool)
        description = rng.choice(_EDITS)(draft, rng)
        if not description:
            continue
        edited = draft.workflow()
        if edited != workflow and not errors(check_workflow(edited, operators, limits)):
            return edited, description
    return None


class _Draft:
    """A workflow under change."""

    def __init__(self, workflow: ir.Workflow, operators: OperatorSet, pool: Mapping[str, str]) -> None:
        self.operators, self.pool = operators, pool
        self.instances = list(workflow.instances)
        self.prompts = dict(workflow.prompts)
        self.inputs = workflow.inputs
        self.body = list(workflow.body)

    def workflow(self) -> ir.Workflow:
        used = {one.instance for one in ir.walk(tuple(self.body)) if isinstance(one, ir.Invoke)}
        named = {one.name for one in ir.walk(tuple(self.body)) if isinstance(one, ir.Prompt)}
        instances = [one for one in self.instances if one.name in used]
        named |= {one.name for one in instances} | {one.operator for one in instances}
        prompts = {name: text for name, text in self.prompts.items() if name in named}
        return ir.Workflow(tuple(instances), tuple(self.body), prompts, self.inputs)

    @property
    def returned(self) -> ir.Expression | None:
        """The value of the final return; None when the workflow ends otherwise."""
        last = self.body[-1] if self.body else None
        return last.value if isinstance(last, ir.Return) else None

    def use(self, operator: str) -> str:
        """The name of an instance of `operator`, declared if need be; "" when there is no such operator."""
        if operator not in self.operators:
            return ""
        found = next((one.name for one in self.instances if one.operator == operator), None)
        if found is None:
            found = self._free("".join(f"_{c.lower()}" if c.isupper() else c for c in operator).strip("_"))
            self.instances.append(ir.Instance(found, operator))
        return found

    def prompt(self, rng: random.Random) -> ir.Prompt:
        name = rng.choice(sorted(self.pool))
        self.prompts[name] = self.pool[name]
        return ir.Prompt(name)

    def variable(self, wish: str) -> str:
        taken = {one.name for one in ir.walk(tuple(self.body)) if isinstance(one, ir.Variable)}
        for one in ir.walk(tuple(self.body)):
            taken |= {getattr(one, "target", ""), getattr(one, "variable", "")}
        return wish if wish not in taken else next(f"{wish}_{n}" for n in range(2, 1000) if f"{wish}_{n}" not in taken)

    def finish(self, made: Sequence[ir.Statement], value: ir.Expression) -> None:
        """Put statements before the return, and return another value."""
        self.body[-1:] = [*made, ir.Return(value)]

    def _free(self, wish: str) -> str:
        names = {one.name for one in self.instances}
        return wish if wish not in names else next(f"{wish}_{n}" for n in range(2, 99) if f"{wish}_{n}" not in names)


_PROBLEM = ir.Input("problem")


def _ensemble(draft: _Draft, rng: random.Random) -> str:
    """Sample the only Custom several times and choose."""
    custom, ensemble = draft.use("Custom"), draft.use("ScEnsemble")
    if not custom or not ensemble or draft.returned is None:
        return ""
    count = rng.choice((2, 3, 5))
    several, best = draft.variable("several"), draft.variable("best")
    call = ir.Invoke("", custom, (("input", _PROBLEM), ("instruction", draft.prompt(rng))))
    texts = ir.Collect(ir.Field(ir.Variable("one"), "response"), "one", ir.Variable(several))
    solutions = ir.Function("+", (ir.ListOf((draft.returned,)), texts))
    made = [
        ir.InvokeEach(several, call, "_", ir.Times(count), True),
        ir.Invoke(best, ensemble, (("solutions", solutions), ("problem", _PROBLEM))),
    ]
    draft.finish(made, ir.Field(ir.Variable(best), "response"))
    return f"choose among the answer and {count} more samples"


def _review(draft: _Draft, rng: random.Random) -> str:
    review, revise = draft.use("Review"), draft.use("Revise")
    if not review or not revise or draft.returned is None:
        return ""
    solution, checked, better = draft.variable("solution"), draft.variable("checked"), draft.variable("better")
    given = (("problem", _PROBLEM), ("solution", ir.Variable(solution)))
    feedback = ir.Field(ir.Variable(checked), "feedback")
    made = [
        ir.Assign(solution, draft.returned),
        ir.Invoke(checked, review, given),
        ir.Branch(
            ir.Function("not", (ir.Field(ir.Variable(checked), "review_result"),)),
            (
                ir.Invoke(better, revise, (*given, ("feedback", feedback))),
                ir.Assign(solution, ir.Field(ir.Variable(better), "solution")),
            ),
        ),
    ]
    draft.finish(made, ir.Variable(solution))
    return "review the answer and revise it when it is judged wrong"


def _program(draft: _Draft, rng: random.Random) -> str:
    programmer = draft.use("Programmer")
    if not programmer or draft.returned is None:
        return ""
    program, answer = draft.variable("program"), draft.variable("answer")
    output = ir.Field(ir.Variable(program), "output")
    success = ir.Field(ir.Variable(program), "success")
    made = [
        ir.Invoke(program, programmer, (("problem", _PROBLEM),)),
        ir.Assign(answer, ir.Conditional(success, output, draft.returned)),
    ]
    if rng.random() < 0.5:  # the program first, and the rest only when it fails
        kept = list(draft.body[:-1])
        branch = ir.Branch(success, (ir.Return(output),))
        draft.body[:] = [made[0], branch, *kept, ir.Return(draft.returned)]
        return "try a program first, and return what it computes"
    draft.finish(made, ir.Variable(answer))
    return "write a program, and prefer what it computes"


def _refine(draft: _Draft, rng: random.Random) -> str:
    custom = draft.use("Custom")
    if not custom or draft.returned is None:
        return ""
    final = draft.variable("final")
    shown = ir.Function("+", (_PROBLEM, ir.Constant("\n\nA draft of the answer:\n"), draft.returned))
    prompt = draft.prompt(rng)
    made = [ir.Invoke(final, custom, (("input", shown), ("instruction", prompt)))]
    draft.finish(made, ir.Field(ir.Variable(final), "response"))
    return f"write the final answer from the draft with the prompt {prompt.name}"


def _format(draft: _Draft, rng: random.Random) -> str:
    format_ = draft.use("Format")
    if not format_ or draft.returned is None:
        return ""
    formatted = draft.variable("formatted")
    made = [ir.Invoke(formatted, format_, (("problem", _PROBLEM), ("solution", draft.returned)))]
    draft.finish(made, ir.Field(ir.Variable(formatted), "response"))
    return "extract the short answer at the end"


def _start_over(draft: _Draft, rng: random.Random) -> str:
    """One call of one operator: undoes what others built up."""
    kinds = [name for name in ("Custom", "AnswerGenerate", "Programmer") if name in draft.operators]
    if not kinds:
        return ""
    kind = rng.choice(kinds)
    name, answer = draft.use(kind), draft.variable("answer")
    if kind == "Custom":
        arguments = (("input", _PROBLEM), ("instruction", draft.prompt(rng)))
    else:
        arguments = (("input" if kind == "AnswerGenerate" else "problem", _PROBLEM),)
    key = {"Custom": "response", "AnswerGenerate": "answer", "Programmer": "output"}[kind]
    draft.body[:] = [ir.Invoke(answer, name, arguments), ir.Return(ir.Field(ir.Variable(answer), key))]
    return f"start over with one {kind}"


def _prompt(draft: _Draft, rng: random.Random) -> str:
    """Give one Custom another instruction."""
    customs = {one.name for one in draft.instances if one.operator in ("Custom", "CustomCodeGenerate")}
    nodes = [one for one in ir.walk(tuple(draft.body)) if isinstance(one, ir.Invoke) and one.instance in customs]
    if not nodes:
        return ""
    chosen, prompt = rng.choice(nodes), draft.prompt(rng)
    arguments = tuple((name, value) for name, value in chosen.arguments if name != "instruction")
    changed = replace(chosen, arguments=(*arguments, ("instruction", prompt)))
    draft.body[:] = [_replaced(one, chosen, changed) for one in draft.body]
    return f"use the prompt {prompt.name} in {chosen.id}"


def _count(draft: _Draft, rng: random.Random) -> str:
    """Change the rounds of one loop."""
    bounds = [one for one in ir.walk(tuple(draft.body)) if isinstance(one, ir.Times)]
    if not bounds:
        return ""
    chosen = rng.choice(bounds)
    count = rng.choice([count for count in (1, 2, 3, 4, 5) if count != chosen.count])
    draft.body[:] = [_replaced(one, chosen, ir.Times(count)) for one in draft.body]
    return f"{count} rounds in place of {chosen.count}"


def _remove(draft: _Draft, rng: random.Random) -> str:
    """Drop one statement; the checker refuses it when something needs it."""
    if len(draft.body) < 3:
        return ""
    place = rng.randrange(len(draft.body) - 1)
    removed = draft.body.pop(place)
    targets = {getattr(removed, "target", "")}
    last = draft.body[-1]
    if isinstance(last, ir.Return) and any(
        isinstance(one, ir.Variable) and one.name in targets for one in ir.walk(last)
    ):
        before = [one for one in draft.body[:-1] if isinstance(one, ir.Invoke) and one.target]
        if not before:
            return ""
        instance = next(one for one in draft.instances if one.name == before[-1].instance)
        fields = dict(draft.operators[instance.operator].output.fields)
        key = next((name for name in ("response", "solution", "answer", "output") if name in fields), None)
        if key is None:
            return ""
        draft.body[-1] = ir.Return(ir.Field(ir.Variable(before[-1].target), key))
    return f"remove {_name_of(removed)}"


def _name_of(statement: ir.Statement) -> str:
    if isinstance(statement, ir.Assign):
        return f"{statement.target} = {write_expression(statement.value)}"[:60]
    return getattr(statement, "target", "") or type(statement).__name__.lower()


def _replaced(tree: ir.Statement, old: object, new: object) -> ir.Statement:
    """`tree` with the node that is `old` (by identity) replaced."""
    if tree is old:
        return new  # pyright: ignore[reportReturnType]
    if isinstance(tree, ir.Loop):
        over = new if tree.over is old else tree.over
        return replace(tree, over=over, body=tuple(_replaced(one, old, new) for one in tree.body))
    if isinstance(tree, ir.Branch):
        then = tuple(_replaced(one, old, new) for one in tree.then)
        return replace(tree, then=then, otherwise=tuple(_replaced(one, old, new) for one in tree.otherwise))
    if isinstance(tree, ir.InvokeEach):
        over = new if tree.over is old else tree.over
        return replace(tree, over=over, invoke=new if tree.invoke is old else tree.invoke)
    if isinstance(tree, ir.Parallel):
        return replace(tree, branches=tuple(new if one is old else one for one in tree.branches))
    return tree


_EDITS: tuple[Edit, ...] = (
    _ensemble, _review, _program, _refine, _format, _start_over, _prompt, _count, _remove,
)  # fmt: skip
