"""Operators that prepare: Plan and Decompose. Their lists are short, so that a loop over one is bounded."""

from __future__ import annotations

import re
from typing import TypedDict

from midstream.workflows.operators.answers import joined
from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import operator

MAX_PARTS = 8
_NUMBERED = re.compile(r"^\s*(?:\d+[.):]|[-*•]|step\s+\d+[.:)]?)\s+(.+)$", re.IGNORECASE | re.MULTILINE)


class Planned(TypedDict):
    plan: str
    steps: list[str]


class Decomposed(TypedDict):
    subproblems: list[str]


@operator(name="Plan")
async def plan(context: OperatorContext, problem: str) -> Planned:
    """Writes a short numbered plan for solving the problem, without solving it."""
    guidance = context.prompt or "Write a short plan for solving the problem. Do not solve it."
    form = f"Reply with at most {MAX_PARTS} numbered lines, one step a line."
    reply = await context.ask(joined(guidance, f"Problem:\n{problem}", form))
    return {"plan": reply.strip(), "steps": _listed(reply) or [reply.strip()]}


@operator(name="Decompose")
async def decompose(context: OperatorContext, problem: str) -> Decomposed:
    """Splits the problem into smaller problems that can be solved one by one."""
    guidance = context.prompt or (
        "Split the problem into smaller problems whose answers together answer it. Each must make sense on its own."
    )
    form = f"Reply with at most {MAX_PARTS} numbered lines, one problem a line."
    parts = _listed(await context.ask(joined(guidance, f"Problem:\n{problem}", form)))
    if not parts:
        context.note("the reply lists no smaller problems; the problem itself is taken")
    return {"subproblems": parts or [problem]}


def _listed(reply: str) -> list[str]:
    return [item.strip() for item in _NUMBERED.findall(reply)][:MAX_PARTS]
