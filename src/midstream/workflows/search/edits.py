"""Edits of a workflow's graph: for searches without an optimiser model.

An edit works on the statements before a `return`: of the whole workflow, or of one side of a final branch
(`draft.ends`). `apply` accepts only what the checker accepts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from midstream.workflows import ir
from midstream.workflows.checker import check_workflow
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import errors
from midstream.workflows.search.draft import PROBLEM, BranchPath, Draft, ends, rebuilt
from midstream.workflows.search.features import Feature, words
from midstream.workflows.write_python import write_expression

PROMPT_POOL: Mapping[str, str] = {
    "STEPS": "Think step by step, then give the final answer alone between <answer> and </answer>.",
    "BRIEF": "Give the answer alone, without an explanation.",
    "CHECK": "Solve the problem, check your result once, then give the answer between <answer> and </answer>.",
    "RESTATE": "First restate the problem in your own words, then solve it and give the answer.",
}
"""Prompts that edits may use."""
TRIES = 40

Edit = Callable[[Draft, random.Random], str]
"""Changes a draft and says what it did; "" when it cannot."""


@dataclass(frozen=True, slots=True)
class Edited:
    """A changed workflow. `edit` is the name of the edit, of `EDITS`."""

    workflow: ir.Workflow
    edit: str
    description: str


@dataclass(frozen=True, slots=True)
class EditSpace:
    """What edits may use: operators, limits, prompts, and the texts of problems to branch on."""

    operators: OperatorSet
    limits: WorkflowLimits | None = None
    pool: Mapping[str, str] = field(default_factory=lambda: PROMPT_POOL)

    def apply(
        self, edit: str, workflow: ir.Workflow, place: BranchPath, rng: random.Random, problems: Sequence[str] = ()
    ) -> Edited | None:
        """The workflow after an edit at one of its ends. None when the edit cannot be made there, or makes no valid
        workflow."""
        draft = Draft(workflow, self.operators, self.pool, place, problems)
        description = EDITS[edit](draft, rng)
        if not description:
            return None
        edited = draft.workflow()
        return Edited(edited, edit, description) if edited != workflow and self.valid(edited) else None

    def valid(self, workflow: ir.Workflow) -> bool:
        """Whether the checker accepts a workflow."""
        return not errors(check_workflow(workflow, self.operators, self.limits))

    def one_calls(self, workflow: ir.Workflow) -> list[Edited]:
        """Every workflow that solves the problem by one call, with the inputs of `workflow`."""
        found: list[Edited] = []
        for operator in (name for name in ONE_CALL if name in self.operators):
            for prompt in sorted(self.pool) if operator == "Custom" else [""]:
                draft = Draft(ir.Workflow((), (), {}, workflow.inputs), self.operators, self.pool)
                description = one_call(draft, operator, prompt)
                found.append(Edited(draft.workflow(), "start_over", description))
        return [one for one in found if self.valid(one.workflow)]


def random_edit(
    workflow: ir.Workflow, rng: random.Random, space: EditSpace, problems: Sequence[str] = ()
) -> Edited | None:
    """A valid workflow that differs from `workflow` by one edit, each edit and each end equally likely. None when no
    edit of `TRIES` is valid."""
    for _ in range(TRIES):
        place = rng.choice(ends(workflow.body))
        if edited := space.apply(rng.choice(list(EDITS)), workflow, place, rng, problems):
            return edited
    return None


def _ensemble(draft: Draft, rng: random.Random) -> str:
    """Sample Custom several times, with an instruction of the end or of the pool, and choose."""
    custom, ensemble = draft.use("Custom"), draft.use("ScEnsemble")
    if not custom or not ensemble or draft.returned is None:
        return ""
    count = rng.choice((2, 3, 5))
    several, best = draft.variable("several"), draft.variable("best")
    own = [value for value in map(_instruction, draft.body) if value is not None]
    instruction = rng.choice(own) if own and rng.random() < 0.5 else draft.prompt(rng)
    call = ir.Invoke("", custom, (("input", PROBLEM), ("instruction", instruction)))
    texts = ir.Collect(ir.Field(ir.Variable("one"), "response"), "one", ir.Variable(several))
    solutions = ir.Function("+", (ir.ListOf((draft.returned,)), texts))
    made = [
        ir.InvokeEach(several, call, "_", ir.Times(count), True),
        ir.Invoke(best, ensemble, (("solutions", solutions), ("problem", PROBLEM))),
    ]
    draft.finish(made, ir.Field(ir.Variable(best), "response"))
    return f"choose among the answer and {count} more samples with the prompt {instruction.name}"


def _instruction(statement: ir.Statement) -> ir.Prompt | None:
    """The prompt that a call has as its instruction."""
    given = dict(statement.arguments).get("instruction") if isinstance(statement, ir.Invoke) else None
    return given if isinstance(given, ir.Prompt) else None


def _review(draft: Draft, rng: random.Random) -> str:
    review, revise = draft.use("Review"), draft.use("Revise")
    if not review or not revise or draft.returned is None:
        return ""
    solution, checked, better = draft.variable("solution"), draft.variable("checked"), draft.variable("better")
    given = (("problem", PROBLEM), ("solution", ir.Variable(solution)))
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


def _program(draft: Draft, rng: random.Random) -> str:
    programmer = draft.use("Programmer")
    if not programmer or draft.returned is None:
        return ""
    program, answer = draft.variable("program"), draft.variable("answer")
    output = ir.Field(ir.Variable(program), "output")
    success = ir.Field(ir.Variable(program), "success")
    made = [
        ir.Invoke(program, programmer, (("problem", PROBLEM),)),
        ir.Assign(answer, ir.Conditional(success, output, draft.returned)),
    ]
    if rng.random() < 0.5:  # the program first, and the rest only when it fails
        kept = list(draft.body[:-1])
        branch = ir.Branch(success, (ir.Return(output),))
        draft.body[:] = [made[0], branch, *kept, ir.Return(draft.returned)]
        return "try a program first, and return what it computes"
    draft.finish(made, ir.Variable(answer))
    return "write a program, and prefer what it computes"


def _refine(draft: Draft, rng: random.Random) -> str:
    custom = draft.use("Custom")
    if not custom or draft.returned is None:
        return ""
    final = draft.variable("final")
    shown = ir.Function("+", (PROBLEM, ir.Constant("\n\nA draft of the answer:\n"), draft.returned))
    prompt = draft.prompt(rng)
    made = [ir.Invoke(final, custom, (("input", shown), ("instruction", prompt)))]
    draft.finish(made, ir.Field(ir.Variable(final), "response"))
    return f"write the final answer from the draft with the prompt {prompt.name}"


def _format(draft: Draft, rng: random.Random) -> str:
    format_ = draft.use("Format")
    if not format_ or draft.returned is None:
        return ""
    formatted = draft.variable("formatted")
    made = [ir.Invoke(formatted, format_, (("problem", PROBLEM), ("solution", draft.returned)))]
    draft.finish(made, ir.Field(ir.Variable(formatted), "response"))
    return "extract the short answer at the end"


def _start_over(draft: Draft, rng: random.Random) -> str:
    """One call of one operator: undoes what others built up."""
    calls = [name for name in ONE_CALL if name in draft.operators]
    if not calls:
        return ""
    kind = rng.choice(calls)
    return one_call(draft, kind, draft.prompt(rng).name if kind == "Custom" else "")


ONE_CALL: Mapping[str, tuple[str, str]] = {
    "Custom": ("input", "response"),
    "AnswerGenerate": ("input", "answer"),
    "Programmer": ("problem", "output"),
}
"""Operators that can solve a problem alone: the argument for the problem, and the field of the answer."""


def one_call(draft: Draft, operator: str, prompt: str = "") -> str:
    """Solve the problem by one call, of Custom with a prompt of the pool; says so."""
    argument, key = ONE_CALL[operator]
    name, answer = draft.use(operator), draft.variable("answer")
    arguments: list[tuple[str, ir.Expression]] = [(argument, PROBLEM)]
    if prompt:
        draft.prompts[prompt] = draft.pool[prompt]
        arguments.append(("instruction", ir.Prompt(prompt)))
    draft.body[:] = [ir.Invoke(answer, name, tuple(arguments)), ir.Return(ir.Field(ir.Variable(answer), key))]
    return f"start over with one {operator}" + (f" and the prompt {prompt}" if prompt else "")


def _branch(draft: Draft, rng: random.Random) -> str:
    """Solve the problems that contain some word of some problem by one call, and the others as before."""
    found = sorted(words(rng.choice(draft.problems))) if draft.problems else []
    if not found:
        return ""
    feature, before = Feature(rng.choice(found)), tuple(draft.body)
    description = _start_over(draft, rng)
    if not description:
        return ""
    draft.body[:] = [ir.Branch(feature.condition(), tuple(draft.body), before)]
    return f"for problems {feature}: {description}"


def _prompt(draft: Draft, rng: random.Random) -> str:
    """Give one Custom another instruction."""
    customs = {one.name for one in draft.instances if one.operator in ("Custom", "CustomCodeGenerate")}
    nodes = [one for one in ir.walk(tuple(draft.body)) if isinstance(one, ir.Invoke) and one.instance in customs]
    if not nodes:
        return ""
    chosen, prompt = rng.choice(nodes), draft.prompt(rng)
    arguments = tuple((name, value) for name, value in chosen.arguments if name != "instruction")
    changed = replace(chosen, arguments=(*arguments, ("instruction", prompt)))
    draft.body[:] = [rebuilt(one, chosen, changed) for one in draft.body]
    return f"use the prompt {prompt.name} in {chosen.id}"


def _count(draft: Draft, rng: random.Random) -> str:
    """Change the rounds of one loop."""
    bounds = [one for one in ir.walk(tuple(draft.body)) if isinstance(one, ir.Times)]
    if not bounds:
        return ""
    chosen = rng.choice(bounds)
    count = rng.choice([count for count in (1, 2, 3, 4, 5) if count != chosen.count])
    draft.body[:] = [rebuilt(one, chosen, ir.Times(count)) for one in draft.body]
    return f"{count} rounds in place of {chosen.count}"


def _remove(draft: Draft, rng: random.Random) -> str:
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


EDITS: Mapping[str, Edit] = {
    "ensemble": _ensemble,
    "review": _review,
    "program": _program,
    "refine": _refine,
    "format": _format,
    "start_over": _start_over,
    "branch": _branch,
    "prompt": _prompt,
    "count": _count,
    "remove": _remove,
}
"""Every edit by name."""
