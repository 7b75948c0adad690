"""What the roles of `plan_and_execute` are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.agents.plan_and_execute.steps import PlannedStep, Strategy
from midstream.tools.marking import RULE, marked_text

_PLANNER = """Write a plan that answers the question, as one JSON object {{"steps": [...]}} of at most {most} steps.
{kinds}
{order}
{rule}
{tools}"""
_TOOL = 'A step that calls a tool: {%s"tool": "TOOL", "args": {...}}'
_TASK = 'A step that is done by thinking: {%s"task": "WHAT TO DO"}'
_ID = '"id": "NAME", '
_CHAIN = (
    "The steps run one after another. In a later step {s1} stands for the result of step 1, {s2} for that of step 2."
)
_GRAPH = (
    'A step starts when the steps it uses, or names in "needs": [...], are done. With "join": "any" one of them is '
    'enough; with "join": "settled" they may also fail. In another step {id} stands for the result of the step with '
    "that id."
)
RANK = """Plan: {steps}
How likely is it that this plan leads to the right answer? Write one number from 0 (not at all) to 10 (certainly)."""
REVIEW = """{results}
Do these results answer the question? Write yes or no, then why."""


def planner_instructions(
    cards: str, strategy: Strategy, tasks: bool, most: int, instructions: str | None = None
) -> str:
    """The planner's system prompt: the built-in one, or `instructions` with `{steps}` and `{tools}` replaced."""
    name = _ID if strategy == "graph" else ""
    kinds = "\n".join(kind % name for kind in [*([_TOOL] if cards else []), *([_TASK] if tasks else [])])
    if instructions is not None:
        return instructions.replace("{steps}", kinds).replace("{tools}", cards)
    tools = f"Tools:\n{cards}" if cards else "There are no tools."
    order = _GRAPH if strategy == "graph" else _CHAIN
    return _PLANNER.format(most=most, kinds=kinds, order=order, rule=RULE, tools=tools)


def plan_request(
    question: str, kept: Sequence[PlannedStep], known: Mapping[str, Any], reason: str, strategy: Strategy
) -> str:
    """Ask for a plan or, with a `reason`, for a new one."""
    if not reason:
        return f"Question: {question}\n[plan]"
    done = ", ".join(step.id for step in kept if step.id in known) or "none"
    parts = [f"Question: {question}", executor_results(known), f"Steps that are done: {done}"]
    parts.append(f"The plan does not work: {marked_text(reason, 'error')}")
    ids = "under new ids" if strategy == "graph" else f"step {len(kept) + 1} and later"
    return "\n".join([*(part for part in parts if part), f"[plan] Write only the steps that are left, {ids}."])


def executor_results(known: Mapping[str, Any]) -> str:
    """The results so far, marked as data."""
    return "\n".join(marked_text(str(value), name) for name, value in known.items())


def answer_request(question: str, known: Mapping[str, Any]) -> str:
    """Ask for the final answer."""
    results = executor_results(known) or "There are no results."
    return f"{RULE}\n{results}\nQuestion: {question}\nWrite only the final answer."
