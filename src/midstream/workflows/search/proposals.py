"""Proposes the next candidate: by a model that rewrites a workflow, or by a random edit."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from midstream.core.errors import EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.workflows import ir
from midstream.workflows.checker import check_text
from midstream.workflows.hybrid import write_hybrid
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.model import Model
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.operators.replies import tagged
from midstream.workflows.problems import errors
from midstream.workflows.search.candidate import MAX_FAILURE_CHARS, Candidate, Experience, Failure
from midstream.workflows.search.edits import PROMPT_POOL, Edited, EditSpace, random_edit
from midstream.workflows.search.racing import differences

SHOWN_FAILURES = 3
UNKNOWN_TRIES = 8
"""Edits that are drawn before a proposal gives up finding one that was not tried."""

RULES = """A workflow is a class in a small subset of Python. `__init__` declares operators; `__call__` wires them with
variables, f-strings, if (also on the problem's text, as in `if "word" in problem:`), for over range(N) or a list, list
comprehensions and asyncio.gather. There is no while, no import, no try, and no other function. Fields of results are
read as result["response"]. Prompts are named texts, used as self.prompts["NAME"]; placeholders in them mean nothing.
Custom is the only operator with an `instruction`; a prompt named like another operator replaces that operator's
own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposed workflow, or why there is none."""

    workflow: ir.Workflow | None
    modification: str
    edit: str = ""
    """Name of the edit that made it; empty when a model did."""
    problems: tuple[str, ...] = ()
    tokens: int = 0
    unknown_tokens: bool = False
    cost_usd: float | None = 0.0
    model_calls: int = 0


NO_NEW_EDIT = Proposal(workflow=None, modification="", problems=("no new valid edit was found",))


def proposed(edited: Edited) -> Proposal:
    """Return an edit of a graph as a proposal."""
    return Proposal(workflow=edited.workflow, modification=edited.description, edit=edited.edit)


class Proposer(Protocol):
    """Proposes a workflow that differs from its parent."""

    async def propose(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure], seed: int
    ) -> Proposal: ...


class RandomProposer:
    """Proposes random edits of the graph, blind to scores and failures. Asks no model."""

    def __init__(
        self, operators: OperatorSet, limits: WorkflowLimits | None = None, pool: Mapping[str, str] = PROMPT_POOL
    ) -> None:
        self._space = EditSpace(operators, limits, pool)

    async def propose(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure], seed: int
    ) -> Proposal:
        rng = random.Random(seed)
        problems = [task.question for task in experience.tasks.values()]
        for _ in range(UNKNOWN_TRIES):
            found = random_edit(workflow, rng, self._space, problems)
            if found is not None and not experience.has(write_hybrid(found.workflow)):
                return proposed(found)
        return NO_NEW_EDIT


class ModelProposer:
    """Lets a model change a workflow, as AFlow's optimiser does: it sees the workflow with its score by kind of
    problem, what was tried, the operators, some failures, and the candidate that solves most of what this one does not.
    A reply that is not a valid workflow is sent back with the checker's messages, at most `repairs` times; a change
    that was tried before is asked for anew, within the same number. `models` are the names that an operator's `model=`
    may have, any when None."""

    def __init__(
        self,
        model: Model,
        operators: OperatorSet,
        limits: WorkflowLimits | None = None,
        *,
        kind: str = "",
        models: Collection[str] | None = None,
        repairs: int = 2,
        max_tokens: int = 2048,
        temperature: float = 1.0,
    ) -> None:
        self._model, self._operators, self._limits = model, operators, limits
        self._kind, self._models, self._repairs = kind, models, repairs
        self._max_tokens, self._temperature = max_tokens, temperature

    async def propose(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure], seed: int
    ) -> Proposal:
        messages: list[Message] = [{"role": "user", "content": self.question(parent, workflow, experience, failures)}]
        tokens, unknown, cost, problems = 0, False, 0.0, list[str]()
        spent: float | None = cost
        modification, calls = "", 0
        for attempt in range(self._repairs + 1):
            sampling = SamplingParams(
                max_tokens=self._max_tokens, temperature=self._temperature, seed=(seed + attempt) % 2**31
            )
            try:
                reply = await self._model.ask(messages, sampling)
            except EngineError as error:
                problems.append(f"the optimiser model did not answer: {error}")
                break
            calls += 1
            unknown = unknown or reply.prompt_tokens is None or reply.completion_tokens is None
            tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
            spent = None if spent is None or reply.cost_usd is None else spent + reply.cost_usd
            modification = (tagged(reply.text, "modification") or "no description").split("\n")[0][:300]
            checked = check_text(_without_tags(reply.text), self._operators, self._limits, self._models)
            found = [str(problem) for problem in errors(checked.problems)]
            if not found and checked.workflow == workflow:
                found = ["the workflow is the same as before; change something"]
            elif not found and experience.is_known(parent.number, modification):
                found = [f"this change was tried already: {modification}"]
            if not found:
                return Proposal(
                    workflow=checked.workflow, modification=modification, tokens=tokens, unknown_tokens=unknown,
                    cost_usd=spent, model_calls=calls,
                )  # fmt: skip
            problems += found
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": "This cannot be used:\n" + "\n".join(found) + "\nReply with it mended."},
            ]
        return Proposal(
            workflow=None, modification=modification, problems=tuple(problems), tokens=tokens, unknown_tokens=unknown,
            cost_usd=spent, model_calls=calls,
        )  # fmt: skip

    def question(
        self, parent: Candidate, workflow: ir.Workflow, experience: Experience, failures: Sequence[Failure]
    ) -> str:
        """The prompt of a proposal."""
        score = "not known" if parent.score is None else f"{parent.score:.3f} of 1"
        kinds = experience.by_kind(parent)
        if len(kinds) > 1:
            score += " (" + ", ".join(f"{kind}: {mean:.3f} of {count}" for kind, (mean, count) in kinds.items()) + ")"
        shown = "\n\n".join(
            f"Problem: {one.problem}\nAnswer: {one.answer}\nExpected: {one.expected}"
            for one in failures[:SHOWN_FAILURES]
        )
        kind = f"{self._kind} problems" if self._kind else "problems"
        return f"""You improve a workflow that solves {kind}. Change one thing: add, remove or change a node, or
change a prompt. Ensembles, review and revision, programs and checks often help; more calls than needed cost money.

{RULES}

Operators:
{self._operators.cards()}

The workflow now, with the score {score}:
{write_hybrid(workflow)}

{experience.text(parent.number)}

Problems it gets wrong:
{shown or "none"}
{_partner(parent, experience)}
Reply with <modification>one sentence that says what you change</modification>, then the whole new workflow as one JSON
object with the keys "prompts" and "graph_code", as above."""


def _partner(parent: Candidate, experience: Experience) -> str:
    """The candidate that solves most of what the parent gets wrong, with some of these problems."""
    found: list[tuple[list[str], Candidate]] = []
    for one in experience.candidates if experience.feedback else ():
        gaps = differences(one.scores, parent.scores)
        solves = [task for task, gap in gaps.items() if gap >= 0.5 and task in experience.tasks]
        if solves and one.number != parent.number and one.workflow is not None:
            found.append((solves, one))
    if not found:
        return ""
    solves, other = max(found, key=lambda one: (len(one[0]), -one[1].number))
    texts = "\n".join(f"- {experience.tasks[task].question[:MAX_FAILURE_CHARS]}" for task in solves[:SHOWN_FAILURES])
    return f"""
Another workflow that was tried, which solves {len(solves)} problems that this one does not:
{other.workflow}
Some of them:
{texts}
"""


def _without_tags(text: str) -> str:
    end = text.rfind("</modification>")
    return text if end < 0 else text[end + len("</modification>") :]
