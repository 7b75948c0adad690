"""A simulated executor model for the task set `varied`: fast, free, and the same on every machine.

It answers the operators' prompts like a small model with known strengths, so that a CPU can train and search workflows
in minutes. It says nothing about real models. `engine: midstream.workflows.simulated:executor` names it, as executor
of a search and as the engine of a flow's role.

| sort | asked briefly | asked to think | as a program | judging |
| --- | --- | --- | --- | --- |
| `recall` | always right | always right | always right | |
| `steps` | 15 % right | 95 % | 50 % | |
| `product` | never right, always the same mistake | the same | always right | |
| `odd` | 55 % right | 55 % | 30 % | |
| reviews and votes | | | | 60 % of reviews are right; a vote takes the most frequent answer |

Each call draws by its seed: equal calls give equal replies, and repeated samples differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from midstream.core.seeds import unit_interval
from midstream.engines.base import Engine, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.tasks.varied import Problem, find_problem

BRIEF: Mapping[str, float] = {"recall": 1.0, "steps": 0.15, "product": 0.0, "odd": 0.55}
THINKING: Mapping[str, float] = {"recall": 1.0, "steps": 0.95, "product": 0.0, "odd": 0.55}
PROGRAM: Mapping[str, float] = {"recall": 1.0, "steps": 0.5, "product": 1.0, "odd": 0.3}
REVIEW = 0.6
"""Probabilities of a right reply."""
_CANDIDATE = re.compile(r"^([A-Z]{1,2}):\n(.*?)(?=^[A-Z]{1,2}:\n|\Z)", re.DOTALL | re.MULTILINE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def executor(tokenizer: ChatTokenizer) -> Engine:
    """The engine. `tokenizer` counts its tokens."""
    return ScriptedEngine(tokenizer, _reply, name="simulated")


def _reply(request: Request) -> str:
    text = str(request.messages[-1]["content"])
    seed = request.sampling.seed if request.sampling.temperature > 0 else None
    return reply(text, seed)


def reply(text: str, seed: int | None) -> str:
    """The reply to an operator's prompt."""
    problem = find_problem(text)
    if problem is None:
        return "I do not know."
    draw = unit_interval("simulated", text, seed)
    if "<solution_letter>" in text:
        return f"<thought>The answers are compared.</thought><solution_letter>{_vote(text)}</solution_letter>"
    if "<review_result>" in text or "<verified>" in text:
        return _judged(problem, text, draw)
    if "```python block" in text:
        return f"```python\n{_program(problem, draw)}\n```"
    candidates = dict(_CANDIDATE.findall(text))
    if len(candidates) > 1:
        return f"<answer>{_final(candidates[_vote(text)])}</answer>"
    if text.startswith("Extract the final answer"):
        return _final(text.partition("Solution:\n")[2])
    lowered = text.lower()
    thinks = "<thought>" in text or "step by step" in lowered or "steps" in lowered or "plan" in lowered
    answer = _drawn(problem, (THINKING if thinks else BRIEF)[problem.sort], draw)
    if "<solution>" in text:
        return f"<solution>{answer}</solution>"
    if not thinks:
        return f"<answer>{answer}</answer>"
    return f"<thought>First I read the problem, then I work on each part of it.</thought><answer>{answer}</answer>"


def _drawn(problem: Problem, right: float, draw: float) -> str:
    if draw < right:
        return problem.answer
    place = int((draw - right) / (1 - right) * len(problem.tempting))
    return problem.tempting[min(place, len(problem.tempting) - 1)]


def _program(problem: Problem, draw: float) -> str:
    right = problem.expression or repr(problem.answer)
    return f"def solve():\n    return {right if draw < PROGRAM[problem.sort] else repr(problem.tempting[0])}"


def _vote(text: str) -> str:
    """The letter of the first solution with the most frequent answer."""
    given = {letter: _final(solution) for letter, solution in _CANDIDATE.findall(text)}
    counts = Counter(given.values())
    return max(given, key=lambda letter: counts[given[letter]], default="A")


def _final(solution: str) -> str:
    found = _ANSWER.findall(solution)
    return (found[-1] if found else solution).strip()


def _judged(problem: Problem, text: str, draw: float) -> str:
    """A review or a verification that is right with the probability `REVIEW`."""
    solution = text.partition("Solution:\n")[2]
    is_right = problem.answer in solution
    says = is_right if draw < REVIEW else not is_right
    answer = _drawn(problem, THINKING[problem.sort], draw)
    return (
        f"<answer>{answer}</answer><verified>{says}</verified><review_result>{says}</review_result>"
        f"<feedback>{'' if says else 'The answer is wrong.'}</feedback>"
    )
