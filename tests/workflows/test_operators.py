"""AFlow's operators, each right where its original is wrong, and the added ones."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any

import pytest
from tests.workflows.fakes import FakeSandbox

from midstream.core.types import Task
from midstream.tools import ToolSession, tool
from midstream.tools.sandbox import Result
from midstream.tools.session import Toolbox
from midstream.workflows import OPERATORS, ScriptedModel, WorkflowInput, WorkflowRun, WorkflowRunner, ir
from midstream.workflows.model import Script
from midstream.workflows.operators import AFLOW
from midstream.workflows.operators.replies import chosen_index, code_of, label, tagged, truth

SOLVE = "```python\ndef solve():\n    return 6 * 7\n```"


def call(
    name: str,
    replies: Script = "",
    arguments: Mapping[str, Any] | None = None,
    prompts: Mapping[str, str] | None = None,
    given: WorkflowInput | None = None,
    **runner: Any,
) -> tuple[dict[str, Any], ScriptedModel, WorkflowRun]:
    """Run a workflow of one operator; its record, the model, and the run."""
    invoke = ir.Invoke("x", "one", tuple((key, _expression(value)) for key, value in (arguments or {}).items()))
    body = (invoke, ir.Return(ir.Constant("done")))
    workflow = ir.Workflow((ir.Instance("one", name),), body, prompts or {})
    model = ScriptedModel(replies)

    async def run() -> WorkflowRun:
        async with WorkflowRunner(model, **runner) as with_model:
            return await with_model.run(workflow, given or WorkflowInput(problem="p"))

    ran = asyncio.run(run())
    assert ran.nodes, ran.error
    return ran.nodes[0].output or {"error": ran.error}, model, ran


def _expression(value: Any) -> ir.Expression:
    return ir.ListOf(tuple(map(ir.Constant, value))) if isinstance(value, list) else ir.Constant(value)


def asked(model: ScriptedModel, place: int = 0) -> str:
    return str(model.asked[place][0][0]["content"])


def test_all_ten_are_there_with_schemas() -> None:
    names = "Custom AnswerGenerate CustomCodeGenerate ScEnsemble Programmer Test Format Review Revise MdEnsemble"
    assert list(AFLOW) == names.split()
    for one in OPERATORS.values():
        assert one.description and one.schema["returns"]["type"] == "object", one.name
    assert "problem" in OPERATORS["ScEnsemble"].schema["parameters"]["required"]  # AFlow's text leaves it out
    assert OPERATORS["Custom"].signature == "Custom(input: text, instruction: text = '') -> {response: text}"


def test_custom_joins_instruction_and_input_without_reading_placeholders() -> None:
    record, model, _ = call("Custom", "4", {"input": "2+2 {x}", "instruction": "Say {input} {0} %s."})
    assert record == {"response": "4"} and asked(model) == "Say {input} {0} %s.\n\n2+2 {x}"
    _, model, _ = call("Custom", "4", {"input": "2+2"}, {"Custom": "Add."})
    assert asked(model) == "Add.\n\n2+2"  # the prompt named like the operator
    _, model, _ = call("Custom", "4", {"input": "2+2"}, {"Custom": "Add.", "one": "Mine."})
    assert asked(model) == "Mine.\n\n2+2"  # the instance's own comes first


def test_answer_generate_reads_tags_and_falls_back_to_the_reply() -> None:
    record, _, _ = call("AnswerGenerate", "<thought>a</thought><answer>Paris</answer>", {"input": "q"})
    assert record == {"thought": "a", "answer": "Paris"}
    record, _, run = call("AnswerGenerate", "Paris, of course.", {"input": "q"})
    assert record["answer"] == "Paris, of course." and run.nodes[0].issues


@pytest.mark.parametrize(
    ("letter", "expected"),
    [("B", "two"), ("B.", "two"), ("b", "two"), ("(C)", "three"), ("Solution C", "three"), (" A\n", "one")],
)
def test_sc_ensemble_reads_every_way_to_name_a_letter(letter: str, expected: str) -> None:
    reply = f"<thought>A differs from B</thought><solution_letter>{letter}</solution_letter>"
    record, _, _ = call("ScEnsemble", reply, {"solutions": ["one", "two", "three"], "problem": "p"})
    assert record == {"response": expected}


def test_sc_ensemble_with_an_empty_or_unknown_letter_takes_the_most_frequent() -> None:
    for reply in ("", "<solution_letter></solution_letter>", "<solution_letter>Q</solution_letter>", "A or B"):
        record, _, run = call("ScEnsemble", reply, {"solutions": ["one", "two", "two "], "problem": "p"})
        assert record["response"].strip() == "two" and run.nodes[0].issues


def test_sc_ensemble_takes_more_than_26_solutions_and_none() -> None:
    many = [f"s{number}" for number in range(30)]
    record, model, _ = call("ScEnsemble", "<solution_letter>AC</solution_letter>", {"solutions": many, "problem": "p"})
    assert record == {"response": "s28"} and "AD:\ns29" in asked(model)
    record, model, run = call("ScEnsemble", "A", {"solutions": [], "problem": "p"})
    assert "the list of solutions is empty" in record["error"] and not model.asked and run.cause == "workflow"
    record, model, _ = call("ScEnsemble", "A", {"solutions": ["x", "x "], "problem": "p"})
    assert record == {"response": "x"} and not model.asked  # nothing to choose


def test_programmer_runs_what_the_model_wrote() -> None:
    """AFlow's reads the wrong key and always says that no code was written."""
    sandbox = FakeSandbox(lambda code: Result("ok", stdout="noise\nsolve() returned: 42\n"))
    record, _, _ = call("Programmer", SOLVE, {"problem": "6 x 7"}, sandbox=sandbox)
    assert record == {"code": "def solve():\n    return 6 * 7", "output": "42", "success": True}
    assert "return 6 * 7" in sandbox.ran[0]


def test_programmer_tries_again_with_the_error_three_times_in_all() -> None:
    sandbox = FakeSandbox(lambda code: Result("error", stderr="ZeroDivisionError: division by zero"))
    record, model, _ = call("Programmer", ["no code", SOLVE, SOLVE], {"problem": "p"}, sandbox=sandbox)
    assert record["success"] is False and "ZeroDivisionError" in record["output"] and record["code"]
    assert len(model.asked) == 3 and "held no Python code" in asked(model, 1) and "ZeroDivision" in asked(model, 2)
    record, _, _ = call("Programmer", "never", {"problem": "p"}, sandbox=sandbox)
    assert record == {"code": "", "output": "Error: no code was written", "success": False}


def finished(code: str) -> Result:
    """Code that ran to its end: the value is that of its last line."""
    return Result("ok", value=code.rstrip().rpartition("\n")[2])


def test_test_sees_public_tests_only_and_repairs_in_the_sandbox() -> None:
    def answer(code: str) -> Result:
        wrong = "a - b" in code and "assert add" in code
        return Result("error", stderr="AssertionError") if wrong else finished(code)

    sandbox = FakeSandbox(answer)
    given = WorkflowInput(problem="p", entry_point="add", public_tests=("assert add(1, 2) == 3",))
    arguments = {"problem": "p", "solution": "def add(a, b):\n    return a - b", "entry_point": "add"}
    fixed = "Oh.\n```python\ndef add(a, b):\n    return a + b\n```"
    record, model, _ = call("Test", fixed, arguments, given=given, sandbox=sandbox)
    assert record == {"result": True, "solution": "def add(a, b):\n    return a + b"}
    assert len(model.asked) == 1 and "assert add(1, 2) == 3" in asked(model)
    record, model, _ = call("Test", "```python\nx = 1 # a - b\n```", arguments, given=given, sandbox=sandbox)
    assert record["result"] is False and len(model.asked) == 3


def test_test_without_public_tests_says_so() -> None:
    sandbox = FakeSandbox(finished)
    arguments = {"problem": "p", "solution": "def add(a, b):\n    return 1", "entry_point": "add"}
    record, model, run = call("Test", "", arguments, sandbox=sandbox)
    assert record["result"] is True and not model.asked and "no public tests" in run.nodes[0].issues[0]


def test_code_runs_in_the_real_sandbox() -> None:
    given = WorkflowInput(problem="p", entry_point="f", public_tests=("assert f(2) == 4",))
    arguments = {"problem": "p", "solution": "MARK = 1\ndef f(x):\n    return x * 2", "entry_point": "f"}
    record, _, _ = call("Test", "", arguments, given=given)
    assert record["result"] is True and "MARK" not in os.environ
    leaves = {**arguments, "solution": "import sys\ndef f(x):\n    sys.exit(0)", "test_loop": 0}
    record, _, _ = call("Test", "", leaves, given=given)
    assert record["result"] is False
    record, _, _ = call("Programmer", SOLVE, {"problem": "p"})
    assert record["output"] == "42"


def test_format_returns_its_answer_under_both_names() -> None:
    record, _, _ = call("Format", " 42 \n", {"problem": "p", "solution": "It is 42."})
    assert record == {"response": "42", "solution": "42"}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<review_result>False</review_result><feedback>off by one</feedback>", False),
        ("<review_result> false. </review_result>", False),
        ("<review_result>True</review_result>", True),
        ("It is wrong.", False),
        ("Hmm.", True),
    ],
)
def test_the_result_of_review_is_a_truth_value(reply: str, expected: bool) -> None:
    """AFlow's is the text 'False', which is true."""
    record, _, _ = call("Review", reply, {"problem": "p", "solution": "s"})
    assert record["review_result"] is expected


def test_revise_keeps_text_as_text_and_code_as_code() -> None:
    given = {"problem": "p", "solution": "The answer is 3.", "feedback": "It is 4."}
    record, model, _ = call("Revise", "<solution>The answer is 4.</solution>", given)
    assert record == {"solution": "The answer is 4."} and "python" not in asked(model)
    record, model, _ = call("Revise", SOLVE, {**given, "solution": "def solve():\n    return 3"})
    assert record == {"solution": "def solve():\n    return 6 * 7"} and "```python" in asked(model)
    record, _, run = call("Revise", "I would not.", {**given, "solution": "def solve():\n    return 3"})
    assert record == {"solution": "def solve():\n    return 3"} and run.nodes[0].issues


def test_md_ensemble_counts_votes_by_solution_in_any_order() -> None:
    def votes_for_two(messages: Any, sampling: Any) -> str:
        lines = str(messages[0]["content"]).splitlines()
        return f"<solution_letter>{lines[lines.index('two') - 1][:-1]}</solution_letter>"

    record, model, _ = call("MdEnsemble", votes_for_two, {"solutions": ["one", "two", "three"], "problem": "p"})
    assert record == {"solution": "two", "response": "two"} and len(model.asked) == 5
    assert len({str(messages) for messages, _ in model.asked}) > 1  # other orders


def test_md_ensemble_survives_votes_that_cannot_be_read() -> None:
    record, _, run = call("MdEnsemble", "none of them", {"solutions": ["one", "two", "two"], "problem": "p"})
    assert record["solution"] == "two" and run.nodes[0].issues


def test_plan_and_decompose_return_short_lists() -> None:
    record, _, _ = call("Plan", "1. Read.\n2. Add.\nSo.", {"problem": "p"})
    assert record["steps"] == ["Read.", "Add."]
    lines = "\n".join(f"{number}. part" for number in range(40))
    record, _, _ = call("Decompose", lines, {"problem": "p"})
    assert len(record["subproblems"]) == 8
    record, _, _ = call("Decompose", "I cannot.", {"problem": "p"})
    assert record["subproblems"] == ["p"]


def test_verify_needs_an_explicit_yes() -> None:
    reply = "<answer>4</answer><verified>True</verified><feedback></feedback>"
    record, _, _ = call("Verify", reply, {"problem": "p", "solution": "4"})
    assert record == {"verified": True, "answer": "4", "feedback": ""}
    record, _, _ = call("Verify", "Perhaps.", {"problem": "p", "solution": "4"})
    assert record["verified"] is False


def test_aggregate_shows_every_solution() -> None:
    record, model, _ = call("Aggregate", "both", {"problem": "p", "solutions": ["one", "two"]})
    assert record == {"response": "both"} and "A:\none" in asked(model) and "B:\ntwo" in asked(model)


def test_search_and_tool_reach_outside_without_a_model() -> None:
    async def find(query: str, k: int) -> list[str]:
        return [f"{query} {number}" for number in range(k)]

    record, _, run = call("Search", "", {"query": "Peru", "k": 2}, search=find)
    assert record == {"response": "Peru 0\n\nPeru 1", "passages": ["Peru 0", "Peru 1"]} and run.model_calls == 0

    @tool
    def multiply(a: int, b: int = 2) -> str:
        """Multiply."""
        return str(a * b)

    @tool
    def say(text: str) -> str:
        """Say."""
        return text

    tools = ToolSession(Toolbox([multiply, say]))
    arguments = {"tool": "multiply", "input": json.dumps({"a": 3, "b": 4})}
    assert call("Tool", "", arguments, tools=tools)[0] == {"result": "12", "ok": True}
    assert call("Tool", "", {"tool": "say", "input": "hello"}, tools=tools)[0]["result"] == "hello"
    record, _, run = call("Tool", "", {"tool": "nobody", "input": "3"}, tools=tools)
    assert record["ok"] is False and run.nodes[0].issues


def test_replies_are_read_as_they_come() -> None:
    assert tagged("<a>1</a><a> </a>", "a") == "1" and tagged("<a>cut", "a") == "cut" and tagged("x", "a") is None
    assert [label(index) for index in (0, 25, 26, 51, 52)] == ["A", "Z", "AA", "AZ", "BA"]
    assert chosen_index("a", 3) == 0 and chosen_index("I think", 10) is None and chosen_index("B or C", 3) is None
    assert truth("not correct") is None and truth("False") is False and truth("yes") is True
    two = "```python\nx = 1\n```\n```python\ndef f():\n    pass\n```\n```text\nno\n```"
    assert code_of(two, "x") == "x = 1" and code_of(two) == "def f():\n    pass"
    assert code_of("```python\n@cache\ndef f():\n    pass") == "@cache\ndef f():\n    pass"
    assert code_of("@cache\ndef f():\n    pass\nelse_ = 1", "f") is not None
    assert code_of("The answer is 4.") is None


def test_hidden_tests_of_a_task_are_not_part_of_what_a_workflow_sees() -> None:
    answer = {"tests": ["assert f(7) == 49"], "entry_point": "f"}
    metadata = {"entry_point": "f", "public_tests": ["assert f(2) == 4"]}
    given = WorkflowInput.of(Task(id="t", prompt="Write f.", answer=answer, metadata=metadata))
    assert given == WorkflowInput(problem="Write f.", entry_point="f", public_tests=("assert f(2) == 4",))
