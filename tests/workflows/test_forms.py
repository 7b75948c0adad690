"""The two surface forms: everything AFlow writes is read, and writing and reading give the same workflow."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workflows import samples

from midstream.workflows import ir, read_workflow, write_code, write_hybrid, write_python
from midstream.workflows.checker import check_text
from midstream.workflows.operators import OPERATORS
from midstream.workflows.problems import WorkflowError
from midstream.workflows.read_python import read_prompts, read_python


@pytest.mark.parametrize("code", samples.ALL.values(), ids=samples.ALL)
def test_aflow_s_workflows_are_accepted_and_round_trip_in_both_forms(code: str) -> None:
    checked = check_text(code)
    assert checked.workflow is not None and checked.ok, checked.problems
    workflow = checked.workflow
    for write in (write_python, write_hybrid):
        text = write(workflow)
        assert read_workflow(text) == workflow
        assert write(read_workflow(text)) == text


def test_the_hybrid_form_is_that_of_seed_003() -> None:
    prompts = {"Custom": "用代数方法一步步解决这个数学问题...", "Review": "检查解题步骤的完整性和正确性..."}
    code = samples.workflow(
        "custom=Custom review=Review",
        """
solution = await self.custom(input=problem)
checked = await self.review(problem=problem, solution=solution['response'])
return solution['response'] if checked['review_result'] else checked['feedback']
""",
    )
    text = json.dumps({"prompts": prompts, "graph_code": code})
    checked = check_text(text)
    assert checked.ok and checked.workflow is not None and not checked.problems
    assert checked.workflow.prompts == prompts
    assert set(json.loads(write_hybrid(checked.workflow))) == {"prompts", "graph_code"}


@pytest.mark.parametrize(
    "wrap",
    [
        "{0}",
        "Here it is:\n```json\n{0}\n```\nIt plans first.",
        "Thinking {{about}} it.\n{0}",
        "```python\n{1}\n```",
        "```\n{1}\n```\nand nothing else",
        "Sure!\n{1}",
    ],
)
def test_words_and_fences_around_a_workflow_are_ignored(wrap: str) -> None:
    workflow = read_workflow(samples.ROUND_1_QA)
    text = wrap.format(write_hybrid(workflow), write_code(workflow))
    assert read_workflow(text) == workflow


def test_prompts_of_every_place_are_found() -> None:
    code = samples.ROUND_1_QA.replace('instruction=""', 'instruction=self.prompts["B"] + self.prompts.get("C", "c")')
    text = 'A = "a"\nPROMPTS = {"B": """two\nlines"""}\n' + code
    workflow = read_workflow(text)
    assert workflow.prompts == {"A": "a", "B": "two\nlines"}
    assert read_prompts('SOLVE = """Do it."""\n\nCHECK = "Check."\n') == {"SOLVE": "Do it.", "CHECK": "Check."}
    with pytest.raises(WorkflowError, match="line 1"):
        read_prompts("import os\nSOLVE = 'x'")


def test_an_awaited_call_in_an_expression_becomes_a_node_of_its_own() -> None:
    workflow = read_workflow(
        samples.workflow("custom=Custom", 'return (await self.custom(input=problem))["response"].strip()')
    )
    node, returned = workflow.body
    assert isinstance(node, ir.Invoke) and node.id == "n1" and isinstance(returned, ir.Return)
    assert returned.value == ir.Function("strip", (ir.Field(ir.Variable(node.target), "response"),))


def test_lines_and_names_of_nodes_do_not_make_workflows_differ() -> None:
    spaced = samples.ROUND_1_QA.replace("        solution", "\n\n        # a comment\n        solution")
    assert read_workflow(spaced) == read_workflow(samples.ROUND_1_QA)
    assert hash(read_workflow(spaced)) == hash(read_workflow(samples.ROUND_1_QA))


_NAMES = st.sampled_from(["a", "b", "solution", "texts"])
_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_KEYS = st.sampled_from(["response", "answer", "review_result"])
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**6), 10**6), _WORDS, st.floats(-1e6, 1e6, allow_nan=False)
)
_LEAVES = st.one_of(
    st.builds(ir.Constant, _SCALARS),
    st.builds(ir.Input, st.just("problem")),
    st.builds(ir.Variable, _NAMES),
    st.builds(ir.Prompt, st.sampled_from(["SOLVE", 'it\'s "odd"\n']), st.one_of(st.none(), _WORDS)),
)
_PLAIN = st.recursive(
    st.one_of(st.builds(ir.Variable, _NAMES), st.builds(ir.Input, st.just("problem"))),
    lambda inner: st.one_of(
        st.builds(ir.Field, inner, _KEYS),
        st.builds(ir.Item, inner, st.integers(-3, 3)),
        st.builds(lambda one: ir.Function("strip", (one,)), inner),
    ),
    max_leaves=3,
)


def _templates() -> st.SearchStrategy[ir.Expression]:
    """Texts and plain expressions in turn: neighbouring texts would be read as one."""
    pairs = st.lists(st.tuples(_PLAIN, st.one_of(st.none(), _WORDS.filter(bool))), min_size=1, max_size=3)
    parts = pairs.map(
        lambda found: tuple(
            part for value, text in found for part in ((value,) if text is None else (value, ir.Constant(text)))
        )
    )
    return parts.map(ir.Template)


def _grown(inner: st.SearchStrategy[ir.Expression]) -> st.SearchStrategy[ir.Expression]:
    def flat(name: str, parts: list[ir.Expression]) -> ir.Expression:
        """Operands of the same function are one function, as the reader makes them."""
        arguments: list[ir.Expression] = []
        for part in parts:
            arguments += part.arguments if isinstance(part, ir.Function) and part.name == name else (part,)
        return ir.Function(name, tuple(arguments))

    two = st.tuples(inner, inner)
    return st.one_of(
        st.builds(ir.Field, inner, _KEYS),
        st.builds(ir.Item, inner, st.integers(-3, 3)),
        st.builds(flat, st.sampled_from(["+", "and", "or"]), st.lists(inner, min_size=2, max_size=3)),
        st.builds(ir.Function, st.sampled_from(["-", "*", "==", "!=", "<", ">=", "in", "not in"]), two),
        st.builds(lambda name, one: ir.Function(name, (one,)), st.sampled_from(["not", "len", "str", "lower"]), inner),
        st.builds(lambda one, other: ir.Function("join", (one, other)), inner, inner),
        st.builds(lambda items: ir.ListOf(tuple(items)), st.lists(inner, max_size=3)),
        st.builds(ir.Conditional, inner, inner, inner),
        st.builds(ir.Collect, inner, _NAMES, inner, st.one_of(st.none(), inner)),
        _templates(),
    )


_EXPRESSIONS = st.recursive(_LEAVES, _grown, max_leaves=8)
_CALLS = st.builds(
    ir.Invoke, st.one_of(st.just(""), _NAMES), st.just("custom"), st.builds(lambda one: (("input", one),), _EXPRESSIONS)
)
_UNNAMED = st.builds(ir.Invoke, st.just(""), st.just("custom"), st.builds(lambda one: (("input", one),), _EXPRESSIONS))
_BOUNDS = st.one_of(st.builds(ir.Times, st.integers(1, 10)), _EXPRESSIONS)
_SIMPLE = st.one_of(
    _CALLS,
    st.builds(
        lambda target, calls: ir.Parallel(target, tuple(calls)), _NAMES, st.lists(_UNNAMED, min_size=1, max_size=3)
    ),
    st.builds(ir.InvokeEach, _NAMES, _UNNAMED, st.just("item"), _BOUNDS, st.booleans()),
    st.builds(ir.Assign, _NAMES, _EXPRESSIONS),
    st.builds(ir.Append, _NAMES, _EXPRESSIONS),
    st.builds(ir.Return, _EXPRESSIONS),
    st.builds(ir.Break),
    st.builds(ir.Continue),
)


def _blocks(inner: st.SearchStrategy[ir.Statement]) -> st.SearchStrategy[ir.Statement]:
    body = st.lists(inner, max_size=3).map(tuple)
    return st.one_of(st.builds(ir.Loop, _NAMES, _BOUNDS, body), st.builds(ir.Branch, _EXPRESSIONS, body, body))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.recursive(_SIMPLE, _blocks, max_leaves=5), min_size=1, max_size=4).map(tuple),
    st.dictionaries(_WORDS, _WORDS, max_size=3),
)
def test_any_graph_is_read_as_it_was_written(body: tuple[ir.Statement, ...], prompts: dict[str, str]) -> None:
    workflow = ir.Workflow((ir.Instance("custom", "Custom"),), body, prompts)
    from midstream.workflows.limits import WorkflowLimits

    roomy = WorkflowLimits(expression_depth=100, depth=50)
    assert read_python(write_python(workflow), OPERATORS, roomy) == workflow
    assert read_workflow(write_hybrid(workflow), OPERATORS, roomy) == workflow
