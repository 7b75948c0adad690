"""What the checker says: the line, the reason, and what to write instead."""

from __future__ import annotations

import json

import pytest
from tests.workflows import samples

from midstream.core.errors import ConfigError
from midstream.workflows import OPERATORS, WorkflowLimits, check_text, check_workflow, ir, operator
from midstream.workflows.budget import most_model_calls
from midstream.workflows.operators import OperatorContext
from midstream.workflows.problems import errors

ALL = (
    "custom=Custom answer=AnswerGenerate ensemble=ScEnsemble review=Review programmer=Programmer test=Test "
    "md=MdEnsemble decompose=Decompose"
)
DONE = "return (await self.custom(input=problem))['response']"


def said(body: str, operators: str = ALL, limits: WorkflowLimits | None = None) -> list[str]:
    """The messages of errors, with the lines of `body` from 1."""
    code = samples.workflow(operators, body, "problem: str, entry_point: str = None")
    first = code.splitlines().index('        """Solve it."""') + 1
    found = errors(check_text(code, OPERATORS, limits).problems)
    return [f"{max(0, one.line - first)}: {one.code}: {one.message}; {one.hint}" for one in found]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = await self.answer(input=problem, instruction='Think')\nreturn x['answer']",
         "1: wrong_argument: AnswerGenerate has no argument 'instruction'; it takes input: text"),
        ("x = await self.ensemble(solutions=['a'])\nreturn x['response']",
         "1: wrong_argument: ScEnsemble needs the argument 'problem'"),
        ("x = await self.review(problem, 'a', 'b', 'c')\nreturn x['feedback']",
         "1: wrong_argument: self.review has too many arguments"),
        ("a = await self.custom(input=problem)\nx = await self.ensemble(solutions=[a], problem=problem)\nreturn x",
         "2: type: argument 'solutions' of ScEnsemble must be list of text, not list of record"),
        ("a = await self.custom(input=problem)\nb = await self.custom(input=a)\nreturn b['response']",
         "2: type: argument 'input' of Custom must be text, not record {response: text}; use a[\"response\"]"),
        ("a = await self.custom(input=problem)\nreturn a", "2: type: the answer is record {response: text}, not text; "
         "use a[\"response\"]"),
        ("a = await self.custom(input=problem)\nreturn a['answer']",
         "2: type: the result has no field 'answer'; one of: response"),
        ("a = await self.answer(input=problem)\nreturn a['anwser']",
         "2: type: the result has no field 'anwser'; did you mean 'answer'?"),
        ("a = await self.custom(input=f'{problem} {self.md}')\nreturn a['response']",
         "1: not_allowed: self.md is not a value"),
        ("a = await self.custom(input=problem)\nb = f'{a} x'\nreturn b",
         "2: type: record {response: text} cannot stand in an f-string; use a[\"response\"]"),
        ("a = await self.custom(input=problem + 1)\nreturn a['response']", "1: type: '+' cannot add number to text"),
        ("a = await self.solver(input=problem)\nreturn a['response']",
         "1: unknown_operator: self.solver is not declared in __init__"),
        ("return answer", "1: unknown_name: 'answer' has no value here"),
        ("if len(problem) > 3:\n    x = await self.custom(input=problem)\nreturn x['response']",
         "3: unknown_name: 'x' has no value here"),
        ("for _ in []:\n    x = await self.custom(input=problem)\nreturn x['response']",
         "3: unknown_name: 'x' has no value"),
        (f"{DONE}\ny = await self.custom(input=problem)\nreturn y['response']",
         "2: unreachable: this is never reached"),
        (f"if True:\n    {DONE}\nreturn problem", "1: unreachable: the condition never changes"),
        ("x = await self.custom(input=problem)", "no_answer: the workflow can end without return"),
        ("x = await self.custom(input=problem)\nreturn None", "2: no_answer: the answer is None"),
        ("return problem", "no_answer: the workflow calls no operator"),
        (f"while True:\n    pass\n{DONE}", "1: unbounded_loop: while may never end; use for _ in range(3): and break"),
        (f"for i in range(1000):\n    pass\n{DONE}", "1: unbounded_loop: a loop of 1000 rounds; 1 to 10 are allowed"),
        (f"n = 3\nfor i in range(n):\n    pass\n{DONE}", "2: unbounded_loop: the count of a loop must be a number"),
        ("n = 3\nx = await self.test(problem, 'a', 'b', test_loop=n)\nreturn x['solution']",
         "2: unbounded_loop: argument 'test_loop' must be a number"),
        ("return await self(problem)", "1: recursion: the workflow calls itself"),
        ("return await self.__call__(problem)", "1: recursion: the workflow calls itself"),
        ("x = self.custom(input=problem)\nreturn x['response']", "1: structure: self.custom(...) is not awaited"),
        (f"tasks = [self.custom(input=problem) for _ in range(3)]\n{DONE}",
         "1: structure: the calls in 'tasks' are never awaited; results = await asyncio.gather(*tasks)"),
        ("import os\n" + DONE, "1: not_allowed: an import is not allowed in a workflow"),
        ("try:\n    pass\nexcept Exception:\n    pass\n" + DONE, "1: not_allowed: try is not allowed"),
        ("x = await self.custom(input=problem, instruction=prompt_custom.SOVLE)\nreturn x['response']",
         "1: prompt: there is no prompt 'SOVLE'"),
        ("for i in range(9):\n    for j in range(9):\n        x = await self.custom(input=problem)\n" + DONE,
         "0: budget: up to 82 model calls in a run; at most 40 are allowed"),
        (f"break\n{DONE}", "1: structure: break and continue stand only in a loop"),
        (f"problem = 'x'\n{DONE}", "1: not_allowed: 'problem' cannot be assigned to"),
        ("x = [1, 2] - 3\n" + DONE, "1: type: '-' takes number, not list of number"),
        ("x = await self.review(problem=problem, solution='a')\nif x['review_result'] < 'a':\n    pass\n" + DONE,
         "2: type: '<' cannot order boolean and text"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_what_to_do(body: str, expected: str) -> None:
    found = said(body)
    assert any(expected in one for one in found), found


def test_an_unknown_operator_is_named_with_the_nearest_one() -> None:
    found = said(DONE, "custom=Custom review=Reviews")
    assert any("there is no operator 'Reviews'; did you mean 'Review'?" in one for one in found)


def test_every_problem_is_reported_at_once() -> None:
    found = said("x = eval(problem)\nwhile True:\n    pass\ny = await self.nope(problem)\nreturn z")
    assert [one.split(":")[0] for one in found] == ["1", "2", "4"]


def test_what_is_useless_is_a_warning() -> None:
    code = samples.workflow("custom=Custom review=Review", "a = await self.custom(input=problem)\n" + DONE)
    checked = check_text(json.dumps({"prompts": {"Nobody": "x", "custom": " "}, "graph_code": code}))
    assert checked.ok
    said = [str(one) for one in checked.problems]
    assert any("prompt 'Nobody' is used by no operator" in one for one in said)
    assert any("self.review is never called" in one for one in said)
    assert any("the result 'a' is never used" in one for one in said)
    assert any("prompt 'custom' is empty" in one for one in said)


def test_the_worst_case_of_model_calls_counts_loops_branches_and_repeats() -> None:
    def most(body: str) -> int:
        checked = check_text(samples.workflow(ALL, body, "problem: str, entry_point: str"))
        assert checked.workflow is not None, checked.problems
        return most_model_calls(checked.workflow, OPERATORS, WorkflowLimits())

    assert most(DONE) == 1
    assert most("x = await self.programmer(problem=problem)\nreturn x['output']") == 3
    assert most("x = await self.md(['a', 'b'], problem, vote_count=2)\nreturn x['solution']") == 2
    assert most("x = await self.md(['a', 'b'], problem)\nreturn x['solution']") == 5
    assert most("x = await self.test(problem, 'a', entry_point, test_loop=4)\nreturn x['solution']") == 4
    assert most(f"if problem == 'a':\n    x = await self.programmer(problem=problem)\n{DONE}") == 4
    assert most(f"for _ in range(4):\n    x = await self.custom(input=problem)\n{DONE}") == 5
    parts = (
        "for part in (await self.decompose(problem=problem))['subproblems']:\n    x = await self.custom(input=part)\n"
    )
    assert most(parts + DONE) == 1 + 10 + 1


def test_an_ir_made_by_a_search_is_judged_by_the_same_rules() -> None:
    call = ir.Invoke("x", "nobody", (("input", ir.Variable("y")),))
    body = (call, ir.Loop("i", ir.Times(99), (ir.Return(ir.Variable("x")),)))
    codes = {one.code for one in check_workflow(ir.Workflow((ir.Instance("custom", "Cutsom"),), body))}
    assert codes == {"unknown_operator", "unused"}
    codes = {one.code for one in check_workflow(ir.Workflow((ir.Instance("custom", "Custom"),), body))}
    assert {"unknown_operator", "unbounded_loop"} <= codes


def test_a_variable_that_changes_its_type_in_a_loop_is_unknown_after_it() -> None:
    loop = "for _ in range(2):\n    y = x + 'a'\n    x = await self.custom(input=problem)\n"
    body = f"x = problem\n{loop}return x['response']"
    assert said(body) == []  # the runner checks the value


def test_a_user_s_typed_async_function_is_an_operator() -> None:
    @operator(calls=2)
    async def shout(context: OperatorContext, text: str, times: int = 1, tags: list[str] | None = None) -> str:
        """Makes text loud.

        Not shown."""
        return text.upper() * times

    assert shout.name == "Shout" and shout.description == "Makes text loud."
    assert shout.schema["parameters"]["properties"]["times"] == {"type": "number"}
    assert shout.schema["parameters"]["required"] == ["text"]
    code = samples.workflow("shout=Shout", "return (await self.shout(problem, times=True))['response']")
    found = check_text(code, OPERATORS.with_(shout))
    assert "argument 'times' of Shout must be number, not boolean" in str(found.problems[0])
    assert check_text(code.replace("True", "2"), OPERATORS.with_(shout)).ok
    with pytest.raises(ConfigError, match="two operators are named 'Custom'"):
        OPERATORS.with_(OPERATORS["Custom"])
    with pytest.raises(ConfigError, match="not async"):
        operator(name="Odd")(lambda context: "x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="no values of type"):

        @operator()
        async def bad(context: OperatorContext, of: set[int]) -> str:
            return ""
