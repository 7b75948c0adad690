"""The fixed baselines of AFlow's table as workflows: IO, CoT, CoT-SC, MedPrompt, MultiPersona and Self-Refine.

They run in the same harness, with the same models and budgets, as what is searched or learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from midstream.workflows import ir
from midstream.workflows.checker import checked_workflow
from midstream.workflows.operators import OPERATORS

_ANSWER = "Give the final answer alone between <answer> and </answer>."
_THINK = f"Think step by step. {_ANSWER}"
_PROMPTS: Mapping[str, Mapping[str, str]] = {
    "io": {"ANSWER": _ANSWER},
    "cot": {"THINK": _THINK},
    "cot-sc": {"THINK": _THINK},
    "medprompt": {"THINK": _THINK},
    "multi-persona": {
        "MATHEMATICIAN": f"You are a careful mathematician. {_THINK}",
        "ENGINEER": f"You are a practical engineer. {_THINK}",
        "TEACHER": f"You are a teacher who explains every step. {_THINK}",
        "DEBATE": f"Other experts gave the answers below. Agree, or say why they are wrong. {_THINK}",
        "Aggregate": f"Several experts debated the problem. Decide which answer is right. {_ANSWER}",
    },
    "self-refine": {
        "THINK": _THINK,
        "Revise": f"Rewrite the solution so that the feedback no longer applies. {_ANSWER}",
    },
}
_CODE: Mapping[str, tuple[str, str]] = {
    "io": (
        "custom=Custom",
        """
solution = await self.custom(input=problem, instruction=self.prompts["ANSWER"])
return solution["response"]
""",
    ),
    "cot": (
        "custom=Custom",
        """
solution = await self.custom(input=problem, instruction=self.prompts["THINK"])
return solution["response"]
""",
    ),
    "cot-sc": (
        "custom=Custom ensemble=ScEnsemble",
        """
solutions = await asyncio.gather(*[self.custom(input=problem, instruction=self.prompts["THINK"]) for _ in range(5)])
best = await self.ensemble(solutions=[one["response"] for one in solutions], problem=problem)
return best["response"]
""",
    ),
    "medprompt": (
        "custom=Custom ensemble=MdEnsemble",
        """
solutions = await asyncio.gather(*[self.custom(input=problem, instruction=self.prompts["THINK"]) for _ in range(3)])
best = await self.ensemble(solutions=[one["response"] for one in solutions], problem=problem, vote_count=5)
return best["solution"]
""",
    ),
    "multi-persona": (
        "custom=Custom aggregate=Aggregate",
        """
a, b, c = await asyncio.gather(self.custom(input=problem, instruction=self.prompts["MATHEMATICIAN"]), \
self.custom(input=problem, instruction=self.prompts["ENGINEER"]), \
self.custom(input=problem, instruction=self.prompts["TEACHER"]))
shown = problem + "\\n\\n1. " + a["response"] + "\\n\\n2. " + b["response"] + "\\n\\n3. " + c["response"]
second = await asyncio.gather(*[self.custom(input=shown, instruction=self.prompts["DEBATE"]) for _ in range(3)])
final = await self.aggregate(problem=problem, solutions=[one["response"] for one in second])
return final["response"]
""",
    ),
    "self-refine": (
        "custom=Custom review=Review revise=Revise",
        """
first = await self.custom(input=problem, instruction=self.prompts["THINK"])
solution = first["response"]
for _ in range(3):
    checked = await self.review(problem=problem, solution=solution)
    if checked["review_result"]:
        break
    better = await self.revise(problem=problem, solution=solution, feedback=checked["feedback"])
    solution = better["solution"]
return solution
""",
    ),
}
BASELINES = tuple(_CODE)
"""Names of the baselines."""


@cache
def baseline(name: str) -> ir.Workflow:
    """The baseline of that name: `io`, `cot`, `cot-sc` (5 samples), `medprompt` (3 samples, 5 shuffled votes),
    `multi-persona` (3 personas, one round of debate) or `self-refine` (3 rounds)."""
    operators, body = _CODE[name]
    declared = [one.split("=") for one in operators.split()]
    lines = [
        "class Workflow:",
        "    def __init__(self, name, llm_config, dataset):",
        *(f"        self.{name} = operator.{kind}(self.llm)" for name, kind in declared),
        "",
        "    async def __call__(self, problem: str):",
        *(f"        {line}" for line in body.strip().splitlines()),
    ]
    prompts = "".join(f"    {key!r}: {text!r},\n" for key, text in _PROMPTS[name].items())
    return checked_workflow(f"PROMPTS = {{\n{prompts}}}\n" + "\n".join(lines), OPERATORS)
