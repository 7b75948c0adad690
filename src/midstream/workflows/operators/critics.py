"""Operators that judge and improve a solution: Review and Revise of AFlow, and Verify."""

from __future__ import annotations

from typing import TypedDict

from midstream.workflows.operators.answers import joined
from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import operator
from midstream.workflows.operators.replies import code_of, tagged, truth


class Reviewed(TypedDict):
    review_result: bool
    feedback: str


class Revised(TypedDict):
    solution: str


class Verified(TypedDict):
    verified: bool
    answer: str
    feedback: str


@operator(name="Review")
async def review(context: OperatorContext, problem: str, solution: str) -> Reviewed:
    """Judges a solution: whether it is right, and what should change."""
    guidance = context.prompt or (
        "Review the solution of the problem. The result is True unless you are almost certain that it is wrong."
    )
    form = (
        "Reply in this form:\n<review_result>True or False</review_result>\n"
        "<feedback>what should change; empty if nothing</feedback>"
    )
    reply = await context.ask(joined(guidance, f"Problem:\n{problem}", f"Solution:\n{solution}", form))
    stated = tagged(reply, "review_result")
    result = truth(reply if stated is None else stated)
    if result is None:
        context.note("the review says neither True nor False; taken as True")
    return {"review_result": result is not False, "feedback": tagged(reply, "feedback") or reply.strip()}


@operator(name="Revise")
async def revise(context: OperatorContext, problem: str, solution: str, feedback: str) -> Revised:
    """Rewrites a solution according to feedback, in the form it had: code stays code, text stays text."""
    guidance = context.prompt or "Rewrite the solution of the problem so that the feedback no longer applies."
    is_code = code_of(solution) is not None
    form = (
        "Reply with the whole program in one ```python block."
        if is_code
        else "Reply in this form:\n<solution>the whole new solution</solution>"
    )
    parts = (f"Problem:\n{problem}", f"Solution:\n{solution}", f"Feedback:\n{feedback}")
    reply = await context.ask(joined(guidance, *parts, form))
    if is_code:
        revised = code_of(reply)
        if revised is None:
            context.note("the revision holds no code; the solution stays as it was")
        return {"solution": solution if revised is None else revised}
    return {"solution": tagged(reply, "solution") or reply.strip()}


@operator(name="Verify")
async def verify(context: OperatorContext, problem: str, solution: str) -> Verified:
    """Solves the problem again independently and compares: whether both agree, the second answer, and the reason."""
    guidance = context.prompt or (
        "Solve the problem yourself without relying on the solution below, then compare the two answers."
    )
    form = (
        "Reply in this form:\n<answer>your own answer</answer>\n<verified>True if the solution's answer agrees, else "
        "False</verified>\n<feedback>where they differ; empty if they agree</feedback>"
    )
    reply = await context.ask(joined(guidance, f"Problem:\n{problem}", f"Solution:\n{solution}", form))
    stated = tagged(reply, "verified")
    verified = truth(reply if stated is None else stated)
    if verified is None:
        context.note("the reply says neither True nor False; taken as not verified")
    return {
        "verified": verified is True,
        "answer": tagged(reply, "answer") or "",
        "feedback": tagged(reply, "feedback") or "",
    }
