"""Operators that choose among solutions: ScEnsemble (universal self-consistency, arXiv 2311.17311) and MdEnsemble
(MedPrompt's choice-shuffling vote, arXiv 2311.16452), and Aggregate, which merges them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

from midstream.workflows.operators.answers import joined
from midstream.workflows.operators.context import OperatorContext, OperatorFailed
from midstream.workflows.operators.declare import MAX_REPEATS, operator
from midstream.workflows.operators.replies import chosen_index, label, tagged

_CONSISTENT = "Several solutions of one problem follow. Choose the one whose answer agrees with most of the others."
_BEST = "Several solutions of one problem follow. Choose the one that is right and answers the problem best."
_FORM = "Reply in this form:\n<thought>why</thought>\n<solution_letter>the letter of the solution</solution_letter>"


class Chosen(TypedDict):
    solution: str
    response: str


@operator(name="ScEnsemble")
async def sc_ensemble(context: OperatorContext, solutions: list[str], problem: str) -> str:
    """Asks the model once which solution agrees with most of the others."""
    _check(solutions)
    if len(set(map(str.strip, solutions))) == 1:
        return solutions[0]
    reply = await context.ask(_question(context.prompt or _CONSISTENT, solutions, problem))
    index = _choice(reply, len(solutions))
    if index is None:
        context.note("the reply names no solution; the most frequent one is taken")
        return _most_frequent(solutions)
    return solutions[index]


@operator(name="MdEnsemble", calls="vote_count")
async def md_ensemble(context: OperatorContext, solutions: list[str], problem: str, vote_count: int = 5) -> Chosen:
    """Asks the model several times which solution is best, each time in another order, and takes the majority."""
    _check(solutions)
    if len(set(map(str.strip, solutions))) == 1:
        return {"solution": solutions[0], "response": solutions[0]}
    count = min(max(1, vote_count), MAX_REPEATS)
    orders = [context.random.sample(range(len(solutions)), len(solutions)) for _ in range(count)]

    async def vote(order: Sequence[int]) -> int | None:
        shown = [solutions[index] for index in order]
        choice = _choice(await context.ask(_question(context.prompt or _BEST, shown, problem)), len(shown))
        return None if choice is None else order[choice]

    votes = [index for index in await asyncio.gather(*map(vote, orders)) if index is not None]
    if not votes:
        context.note("no vote names a solution; the most frequent one is taken")
        best = _most_frequent(solutions)
    else:
        # Equal solutions share their votes; the order of the solutions breaks ties.
        tally = Counter(solutions[index].strip() for index in votes)
        best = max(solutions, key=lambda solution: tally[solution.strip()])
    return {"solution": best, "response": best}


@operator(name="Aggregate")
async def aggregate(context: OperatorContext, problem: str, solutions: list[str]) -> str:
    """Merges several partial or whole solutions into one."""
    _check(solutions)
    guidance = context.prompt or "Combine the solutions below into one right and complete solution of the problem."
    return await context.ask(_question(guidance, solutions, problem, form=""))


def _check(solutions: Sequence[str]) -> None:
    if not solutions:
        raise OperatorFailed("the list of solutions is empty")


def _question(guidance: str, solutions: Sequence[str], problem: str, form: str = _FORM) -> str:
    listed = [f"{label(index)}:\n{solution}" for index, solution in enumerate(solutions)]
    return joined(guidance, f"Problem:\n{problem}", *listed, form)


def _choice(reply: str, count: int) -> int | None:
    letter = tagged(reply, "solution_letter")
    return chosen_index(reply if letter is None else letter, count)


def _most_frequent(solutions: Sequence[str]) -> str:
    tally = Counter(solution.strip() for solution in solutions)
    return max(solutions, key=lambda solution: tally[solution.strip()])
