"""The workflows that AFlow writes run as written, in each surface form: calls, branches taken, code run, answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from tests.workflows import samples
from tests.workflows.fakes import FakeSandbox

from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.tools.sandbox import Result
from midstream.workflows import (
    OPERATORS,
    RunStatus,
    ScriptedModel,
    WorkflowInput,
    WorkflowLimits,
    WorkflowRun,
    WorkflowRunner,
    checked_workflow,
    read_workflow,
    write_hybrid,
    write_python,
)
from midstream.workflows.budget import most_model_calls

ADD, SUBTRACT = ("def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b")
SOLVE = "def solve():\n    return 6 * 7"
LETTER = "<solution_letter>{}</solution_letter>"


class Case(NamedTuple):
    """`replies` are the model's, in order, or a function of a prompt; a call more or less is an error."""

    replies: Sequence[str] | Callable[[str], str]
    answer: str
    prompts: dict[int, str]
    """What must be in some of the prompts, by the place of the call."""
    operators: str
    """Operators of the calls, in the order of the nodes."""
    code_runs: int = 0


def fenced(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```"


def parallel(prompt: str) -> str:
    """Replies to the shape with concurrent calls. Every vote is for the second of the checked solutions."""
    if "solution_letter" in prompt:
        return LETTER.format(re.findall(r"^([A-Z]):\nchecked: brief", prompt, re.MULTILINE)[0])
    if "<review_result>" in prompt:
        return "<review_result>True</review_result>"
    if prompt.startswith("Check."):
        return f"checked: {prompt.rpartition('?')[2]}"
    return "brief" if prompt.startswith("Be brief.") else "long"


CASES = {
    "round 1, qa": Case(["4"], "4", {0: "What is it?"}, "Custom"),
    "round 1, prompt": Case(["4"], "4", {0: "Answer with a short phrase."}, "Custom"),
    "round 1, code": Case([fenced(ADD)], ADD, {0: "Define `add`."}, "CustomCodeGenerate"),
    "qa, ensemble": Case(
        [
            "<thought>two and two</thought><answer>four</answer>",
            "<answer>five</answer>",
            "<answer>4</answer>",
            LETTER.format("C"),
            "4.",
        ],
        "4.",
        {0: "What is it?", 3: "B:\nfive", 4: "What is it?\nAnswer: 4"},
        "AnswerGenerate AnswerGenerate AnswerGenerate ScEnsemble Custom",
    ),
    "maths, program": Case(
        [
            fenced(SOLVE),
            "It is 41.",
            "<review_result>False</review_result><feedback>The program says 42.</feedback>",
            "<solution>It is 42.</solution>",
        ],
        "It is 42.",
        {1: "A program says: 42", 2: "It is 41.", 3: "The program says 42."},
        "Programmer Custom Review Revise",
        code_runs=1,
    ),
    "code, tested": Case(
        [fenced(SUBTRACT), fenced(ADD), fenced(SUBTRACT), LETTER.format("A"), fenced(ADD)],
        ADD,
        {3: "a + b", 4: "assert add(1, 2) == 3"},
        "CustomCodeGenerate CustomCodeGenerate CustomCodeGenerate ScEnsemble Test",
        code_runs=4,  # the program alone and with its test, before and after it was rewritten
    ),
    "parallel": Case(parallel, "checked: brief", {}, "Custom Custom Custom Custom Review MdEnsemble"),
    "loops": Case(
        [
            "1. add\n2. say",
            "1. What is 1 + 1?\n2. What is 4 + 4?",
            "2",
            "8",
            "11",
            "<answer>10</answer><verified>False</verified><feedback>too large</feedback>",
            "10",
            "<answer>10</answer><verified>True</verified>",
        ],
        "10",
        {3: "What is 4 + 4?", 4: "A:\n2\n\nB:\n8", 6: "11 too large (try 1)"},
        "Plan Decompose Custom Custom Aggregate Verify Custom Verify",
    ),
}


def run_code(code: str) -> Result:
    """A sandbox in which subtracting fails the test, and a program that reaches its end returns its last line."""
    if "return a - b" in code and "assert add(1, 2)" in code:
        return Result("error", stderr="AssertionError")
    return Result("ok", stdout="solve() returned: 42\n", value=code.rstrip().rpartition("\n")[2])


@pytest.mark.parametrize(
    "form",
    [str, lambda code: write_python(read_workflow(code)), lambda code: write_hybrid(read_workflow(code))],
    ids=["as written", "code", "hybrid"],
)
@pytest.mark.parametrize("name", samples.ALL)
def test_aflow_s_workflows_run(name: str, form: Callable[[str], str]) -> None:
    case, workflow, sandbox = CASES[name], checked_workflow(form(samples.ALL[name])), FakeSandbox(run_code)

    def reply(messages: Sequence[Message], sampling: SamplingParams) -> str:
        assert callable(case.replies)
        return case.replies(str(messages[0]["content"]))

    model = ScriptedModel(reply if callable(case.replies) else case.replies)
    given = WorkflowInput(problem="What is it?", entry_point="add", public_tests=("assert add(1, 2) == 3",))

    async def act() -> WorkflowRun:
        async with WorkflowRunner(model, sandbox=sandbox) as runner:
            return await runner.run(workflow, given)

    ran = asyncio.run(act())
    assert (ran.status, ran.answer) == (RunStatus.COMPLETED, case.answer), ran.error
    assert [node.operator for node in ran.nodes] == case.operators.split()
    assert not any(node.issues for node in ran.nodes)
    if not callable(case.replies):
        assert len(model.asked) == len(case.replies)
    for place, words in case.prompts.items():
        assert words in str(model.asked[place][0][0]["content"])
    assert len(sandbox.ran) == case.code_runs
    assert ran.model_calls == len(model.asked) <= most_model_calls(workflow, OPERATORS, WorkflowLimits())
