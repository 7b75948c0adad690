"""Demonstrations for `workflow_writer`: small workflows in the hybrid form, one shape for each sort of problem.

They teach how a workflow is written. Which shape is shown for a task is `metadata["workflow"]` (a shape's name, or a
whole workflow), else the shape for its kind; the share `wrong` of them shows another shape, so that reinforcement
learning, and not the demonstrations, finds out which one a problem needs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midstream.agents.demonstrations import OTHERWISE, Assignment, Demonstrator
from midstream.core.errors import ConfigError
from midstream.core.seeds import derive_seed, unit_interval
from midstream.core.types import Step, Task, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox
from midstream.workflows.checker import check_text
from midstream.workflows.limits import WorkflowLimits
from midstream.workflows.operators.declare import OperatorSet
from midstream.workflows.problems import errors

_THINK = ("Think step by step.", "Solve it step by step.", "Work step by step, then answer.")
_BRIEF = ("Answer briefly.", "Give the answer alone.", "Reply with the answer only.")
_CALL = "x = await self.custom(input=problem, instruction=self.prompts['SOLVE'])"
_SEARCH = "f = await self.search(query=problem, k=1)"


@dataclass(frozen=True, slots=True)
class Shape:
    """A small workflow: its operators by the name they are declared with, texts for its prompt `SOLVE`, and the lines
    of its body."""

    operators: Mapping[str, str]
    prompts: Sequence[str]
    body: Sequence[str]
    inputs: str = "problem"

    def text(self, rng: random.Random) -> str:
        """The workflow in the hybrid form, with one of the prompts and a number of samples drawn by `rng`."""
        prompts = {"SOLVE": rng.choice(self.prompts)} if self.prompts else {}
        count = str(rng.choice((3, 5)))
        lines = [
            "class Workflow:",
            "  def __init__(self):",
            *(f"    self.{name} = operator.{kind}(self.llm)" for name, kind in self.operators.items()),
            f"  async def __call__(self, {self.inputs}):",
            *(f"    {line.replace('COUNT', count)}" for line in self.body),
        ]
        return json.dumps({"prompts": prompts, "graph_code": "\n".join(lines)})


SHAPES: Mapping[str, Shape] = {
    "direct": Shape({"custom": "Custom"}, _BRIEF, (_CALL, "return x['response']")),
    "steps": Shape({"custom": "Custom"}, _THINK, (_CALL, "return x['response']")),
    "program": Shape(
        {"programmer": "Programmer"}, (), ("x = await self.programmer(problem=problem)", "return x['output']")
    ),
    "vote": Shape(
        {"custom": "Custom", "vote": "ScEnsemble"},
        (*_THINK, *_BRIEF),
        (
            "xs = [await self.custom(input=problem, instruction=self.prompts['SOLVE']) for _ in range(COUNT)]",
            "x = await self.vote(solutions=[one['response'] for one in xs], problem=problem)",
            "return x['response']",
        ),
    ),
    "refine": Shape(
        {"custom": "Custom", "review": "Review", "revise": "Revise"},
        _THINK,
        (
            _CALL,
            "y = await self.review(problem=problem, solution=x['response'])",
            "if y['review_result']:",
            "  return x['response']",
            "z = await self.revise(problem=problem, solution=x['response'], feedback=y['feedback'])",
            "return z['solution']",
        ),
    ),
    "tested": Shape(
        {"write": "CustomCodeGenerate", "test": "Test"},
        (),
        (
            "x = await self.write(problem=problem, entry_point=entry_point)",
            "y = await self.test(problem=problem, solution=x['response'], entry_point=entry_point)",
            "return y['solution']",
        ),
        "problem, entry_point",
    ),
    "lookup": Shape({"search": "Search"}, (), (_SEARCH, "return f['response']")),
    "lookup_program": Shape(
        {"search": "Search", "programmer": "Programmer"},
        (),
        (
            _SEARCH,
            "x = await self.programmer(problem=f['response'] + ' ' + problem)",
            "return x['output']",
        ),
    ),
}
"""Shapes by name: one short answer, one answer step by step, a program, a vote of 3 or 5 samples, a review with one
revision, code with its public tests, a passage that is found, and a program that is given one."""
BY_KIND: Mapping[str, str] = {"math": "program", "code": "tested", "qa": "direct", "choice": "vote"}
"""The shape that is shown for a task that names none, by its `problem_type` or kind; else `steps`."""


class WorkflowDemonstrator(Demonstrator):
    """Writes demonstrations as the policy. The executor only says "yes": a demonstration teaches how a workflow is
    written, and its answer does not matter."""

    roles = ("policy", "executor")

    def __init__(
        self, tokenizer: ChatTokenizer, operators: OperatorSet, limits: WorkflowLimits, *, wrong: float, seed: int
    ) -> None:
        super().__init__(tokenizer, Toolbox([]), wrong=wrong, seed=seed)
        self._operators, self._limits = operators, limits
        self._texts: dict[str, str] = {}
        self._offered = [name for name, one in SHAPES.items() if set(one.operators.values()) <= set(operators)]
        if not self._offered:
            raise ConfigError(
                "warm_start has no demonstration for these operators", "add Custom to flow.settings.operators"
            )

    def check(self, task: Task) -> None:
        """Raise `ConfigError` when the demonstration of `task` is not a workflow that may run."""
        found = errors(check_text(self._text(task, wrong=False), self._operators, self._limits, ("",)).problems)
        if found:
            raise ConfigError(
                f"the demonstration of the task '{task.id}' is not a workflow that may run: {found[0]}",
                f"correct `workflow` in the task's metadata, or {OTHERWISE}",
            )

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        """Set the task of each trajectory, by uid. Those in `wrong` show a shape that does not suit the task."""
        super().assign(right, {})
        super().assign(wrong, {})
        for tasks, is_wrong in ((right, False), (wrong, True)):
            self._texts.update({uid: self._text(task, wrong=is_wrong) for uid, task in tasks.items()})

    def lesson(self, right: Trajectory, wrong: Trajectory) -> tuple[Step, ...]:
        """The steps to imitate, from the two trajectories of one task."""
        return (wrong if unit_interval(self._seed, "wrong first", right.uid) < self._wrong else right).steps

    def reply(self, assignment: Assignment, request: Request) -> str:
        return self._texts[request.session] if request.role == "policy" else "yes"

    def _text(self, task: Task, *, wrong: bool) -> str:
        rng = random.Random(derive_seed(self._seed, "demonstration", task.id, wrong))
        shown = str(task.metadata.get("workflow") or BY_KIND.get(_kind(task), "steps"))
        if wrong:
            shown = rng.choice([name for name in self._offered if name != shown] or self._offered)
        elif shown not in SHAPES:
            return shown
        elif shown not in self._offered:
            shown = self._offered[0]
        return SHAPES[shown].text(rng)


def _kind(task: Task) -> str:
    return str(task.metadata.get("problem_type") or task.kind)
