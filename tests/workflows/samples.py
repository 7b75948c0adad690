"""Workflows as AFlow writes them: its first rounds, and the shapes that its operator sets lead to."""

from __future__ import annotations

HEADER = """from typing import Literal
import workspace.HotpotQA.workflows.template.operator as operator
import workspace.HotpotQA.workflows.round_1.prompt as prompt_custom
from scripts.async_llm import create_llm_instance


from scripts.evaluator import DatasetType


class Workflow:
    def __init__(
        self,
        name: str,
        llm_config,
        dataset: DatasetType,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.llm = create_llm_instance(llm_config)
"""
COST = 'self.llm.get_usage_summary()["total_cost"]'


def workflow(operators: str, body: str, arguments: str = "problem: str") -> str:
    """Code with `operators` (`custom=Custom ...`) and the lines of `__call__`."""
    declared = [one.split("=", 1) for one in operators.split()]
    lines = [
        f"        self.{name} = operator.{kind}" + ("" if "(" in kind else "(self.llm)") for name, kind in declared
    ]
    inner = "\n".join(f"        {line}" if line else "" for line in body.strip("\n").splitlines())
    return (
        HEADER
        + "\n".join(lines)
        + f'\n\n    async def __call__(self, {arguments}):\n        """Solve it."""\n{inner}\n'
    )


ROUND_1_QA = workflow(
    "custom=Custom",
    f"""
solution = await self.custom(input=problem, instruction="")
return solution['response'], {COST}
""",
)
ROUND_1_PROMPT = 'SOLVE_PROMPT = """Answer with a short phrase."""\n\n' + workflow(
    "custom=Custom",
    f"""
solution = await self.custom(
    input=problem, instruction=prompt_custom.SOLVE_PROMPT
)
return solution["response"], {COST}
""",
)
ROUND_1_CODE = workflow(
    "custom=Custom custom_code_generate=CustomCodeGenerate",
    f"""
solution = await self.custom_code_generate(problem=problem, entry_point=entry_point, instruction="")
return solution['response'], {COST}
""",
    "problem: str, entry_point: str",
)
QA_ENSEMBLE = workflow(
    "custom=Custom answer_generate=AnswerGenerate sc_ensemble=ScEnsemble",
    f"""
solutions = []
for _ in range(3):
    thought = await self.answer_generate(input=problem)
    solutions.append(thought['answer'])
best = await self.sc_ensemble(solutions=solutions, problem=problem)
final = await self.custom(input=problem + f"\\nAnswer: {{best['response']}}", instruction="Only the answer.")
return final['response'], {COST}
""",
)
MATH_PROGRAM = workflow(
    "programmer=Programmer custom=Custom review=Review revise=Revise",
    f"""
program = await self.programmer(problem=problem, analysis="None")
solution = await self.custom(input=problem + "\\nA program says: " + program['output'], instruction="Solve it.")
checked = await self.review(problem=problem, solution=solution['response'])
if not checked['review_result']:
    revised = await self.revise(problem=problem, solution=solution['response'], feedback=checked['feedback'])
    return revised['solution'], {COST}
return solution['response'], {COST}
""",
)
CODE_TESTED = workflow(
    "generate=CustomCodeGenerate test=Test sc_ensemble=ScEnsemble",
    f"""
solutions = []
for _ in range(3):
    solution = await self.generate(problem=problem, entry_point=entry_point, instruction="Write it.")
    solutions.append(solution['response'])
best = await self.sc_ensemble(solutions=solutions, problem=problem)
tested = await self.test(problem=problem, solution=best['response'], entry_point=entry_point)
if tested['result']:
    return tested['solution'], {COST}
again = await self.generate(problem=problem, entry_point=entry_point, instruction="Think first.")
return again['response'], {COST}
""",
    "problem: str, entry_point: str",
)
PARALLEL = workflow(
    "custom=Custom review=Review md=MdEnsemble(self.llm,vote_count=3)",
    f"""
a, b = await asyncio.gather(self.custom(input=problem), self.custom(input=problem, instruction="Be brief."))
tasks = [self.custom(input=problem + text, instruction="Check.") for text in [a['response'], b['response']]]
results = await asyncio.gather(*tasks)
texts = [result['response'] for result in results if len(result['response']) > 0]
texts += [a['response']]
if (await self.review(problem=problem, solution=b['response']))['review_result'] and len(texts) >= 2:
    texts.append(b['response'])
chosen = await self.md(texts, problem)
answer = chosen['solution'].strip() if chosen['solution'] is not None else "unknown"
return answer, {COST}
""",
)
LOOP_UNTIL = workflow(
    "plan=Plan decompose=Decompose custom=Custom aggregate=Aggregate verify=Verify",
    """
steps = await self.plan(problem=problem)
parts = await self.decompose(problem=problem)
answers = []
for part in parts['subproblems']:
    one = await self.custom(input=part, instruction=steps['plan'])
    answers.append(one['response'])
total = await self.aggregate(problem=problem, solutions=answers)
for attempt in range(3):
    checked = await self.verify(problem=problem, solution=total['response'])
    if checked['verified']:
        break
    total = await self.custom(input=total['response'] + f" {checked['feedback']} (try {attempt + 1})")
return total['response']
""",
)
ALL = {
    "round 1, qa": ROUND_1_QA,
    "round 1, prompt": ROUND_1_PROMPT,
    "round 1, code": ROUND_1_CODE,
    "qa, ensemble": QA_ENSEMBLE,
    "maths, program": MATH_PROGRAM,
    "code, tested": CODE_TESTED,
    "parallel": PARALLEL,
    "loops": LOOP_UNTIL,
}
