"""Operators that answer: Custom, AnswerGenerate and Format of AFlow (arXiv 2410.10762).

A workflow's prompt for an operator (`OperatorContext.prompt`) replaces the operator's own instruction. Prompts and
inputs are joined, never formatted, so braces in either mean nothing.
"""

from __future__ import annotations

from typing import TypedDict

from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.operators.declare import operator
from midstream.workflows.operators.replies import tagged


class Thought(TypedDict):
    thought: str
    answer: str


class Formatted(TypedDict):
    response: str
    solution: str


@operator(name="Custom")
async def custom(context: OperatorContext, input: str, instruction: str = "") -> str:
    """Asks the model with an instruction of your own, followed by the input."""
    return await context.ask(joined(instruction or context.prompt, input))


@operator(name="AnswerGenerate")
async def answer_generate(context: OperatorContext, input: str) -> Thought:
    """Thinks step by step, then gives a short answer."""
    guidance = context.prompt or "Think step by step, then answer as briefly as the question allows."
    form = "Reply in this form:\n<thought>your reasoning</thought>\n<answer>the short answer</answer>"
    reply = await context.ask(joined(guidance, form, f"Question:\n{input}"))
    answer = tagged(reply, "answer")
    if not answer:
        context.note("the reply has no <answer>; all of it is taken as the answer")
        return {"thought": "", "answer": reply.strip()}
    return {"thought": tagged(reply, "thought") or reply.partition("<answer>")[0].strip(), "answer": answer}


@operator(name="Format")
async def format_answer(context: OperatorContext, problem: str, solution: str) -> Formatted:
    """Extracts the short final answer from a solution."""
    guidance = context.prompt or (
        "Extract the final answer from the solution, in the shortest form that answers the problem. "
        "Reply with the answer only."
    )
    answer = (await context.ask(joined(guidance, f"Problem:\n{problem}", f"Solution:\n{solution}"))).strip()
    return {"response": answer, "solution": answer}


def joined(*parts: str) -> str:
    """The parts that are not blank, with an empty line between them."""
    return "\n\n".join(part for part in parts if part.strip())
