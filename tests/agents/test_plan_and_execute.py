"""The `plan_and_execute` flow: plans that are checked and repaired, strategies, revisions, undoing, named ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import midstream as ms
from midstream.agents.config import RoleConfig
from midstream.agents.plan_and_execute.steps import (
    PlannedStep,
    UnreadablePlan,
    compile_steps,
    filled,
    read_steps,
    renamed,
    steps_schema,
)
from midstream.core.errors import ConfigError, EngineError
from midstream.core.types import Status, Trajectory
from midstream.tools import ToolError, load_tools, tool

RULES = {"executor": RoleConfig(engine="rules"), "verifier": RoleConfig(engine="rules")}
ONLY_PLANNER = {**RULES, "generator": RoleConfig(engine="rules")}
done: list[str] = []


@tool
def note(what: str) -> str:
    """Note something."""
    if what == "bad":
        raise ToolError("cannot note that")
    done.append(what)
    return f"noted {what}"


@tool
def erase(what: str, output: str) -> str:
    """Take a note back."""
    if what == "stays":
        raise ToolError("cannot erase that")
    done.append(f"not {what}, was '{output}'")
    return "erased"


def plan(*steps: dict[str, Any]) -> str:
    return json.dumps({"steps": steps})


def call(name: str, expression: str = "2 * 3", tool: str = "calculator", **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": tool, "args": {"expression": expression}, **more}


def noted(name: str, what: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "tool": "note", "args": {"what": what}, **more}


@pytest.fixture
def run(make_worker, by_role, attempt):
    """A trajectory in which the roles say these things. Notes are forgotten first."""

    def run(says: dict[str, Any], roles: Any = ONLY_PLANNER, **flow: Any) -> Trajectory:
        done.clear()
        flow.setdefault("tools", ("calculator", f"{__name__}:note", f"{__name__}:erase"))
        worker = make_worker(by_role(**says), "plan_and_execute", roles=roles, **flow)
        return asyncio.run(worker.run(attempt()))

    return run


def outcome(made: Trajectory) -> str:
    assert made.status is Status.COMPLETED, made.error
    return made.metadata["outcome"]


def test_a_chain_runs_step_by_step_and_results_fill_later_steps(run) -> None:
    made = run(
        {
            "planner": plan(call("a"), call("b", "{a} + 1"), {"id": "c", "task": "Say {b} in words."}),
            "executor": "seven",
            "generator": "It is seven.",
        },
        roles={"verifier": RoleConfig(engine="rules")},
    )
    assert (outcome(made), made.answer, made.turns) == ("answered", "It is seven.", 3)
    assert [step.role for step in made.steps] == ["planner", "executor", "generator"]
    assert [(one.arguments["expression"], one.result, one.step_index) for one in made.tool_calls] == [
        ("2 * 3", "6", 0),
        ("6 + 1", "7", 0),
    ]
    assert '<result tool="b">\n7\n</result>' in made.steps[1].messages[-1]["content"]
    assert made.metadata["states"] == dict.fromkeys("abc", "succeeded")


def test_steps_without_ids_are_numbered_also_in_a_revision(run) -> None:
    steps = [{"tool": "note", "args": {"what": what}} for what in ("one", "bad")]
    made = run({"planner": [plan(*steps), plan({"tool": "note", "args": {"what": "{s1}, two"}})]})
    assert (outcome(made), made.answer) == ("answered", "noted noted one, two")
    system, asked = made.steps[0].messages[0]["content"], made.steps[1].messages[-1]["content"]
    assert '{"tool": "TOOL", "args": {...}}' in system and "{s1} stands for the result of step 1" in system
    assert asked.endswith("[plan] Write only the steps that are left, step 2 and later.")
    assert [step["id"] for step in made.metadata["plan"]] == ["s1", "s2"]


def test_own_instructions_replace_the_planners_system_prompt(run) -> None:
    made = run({"planner": plan(call("a"))}, settings={"instructions": "Plan.\n{steps}\n{tools}", "strategy": "graph"})
    first, step, *cards = made.steps[0].messages[0]["content"].splitlines()
    assert (first, step) == ("Plan.", 'A step that calls a tool: {"id": "NAME", "tool": "TOOL", "args": {...}}')
    assert [card.partition("(")[0] for card in cards] == ["calculator", "note", "erase"]


def test_a_plan_that_cannot_be_read_is_repaired_with_the_reason(run) -> None:
    bad = plan(call("a", tool="calculater"), call("a", "{z}"), {"id": "9"})
    made = run({"planner": ["no plan", bad, plan(call("a"))]})
    assert (outcome(made), made.answer) == ("answered", "6")
    second, third = (step.messages[-1]["content"] for step in made.steps[1:])
    assert second == 'Error: write one JSON object: {"steps": [...]}. Write the whole plan again.'
    for problem in ("did you mean 'calculator'?", "another step has the same id", "give either a tool or a task"):
        assert problem in third
    assert [step.metadata["parsed"] for step in made.steps] == [False, False, True]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("NaN", "nan is not a number in JSON"),
        ("1e999", "inf is not a number"),
        ("[" * 900 + "]" * 900, "more than 64 deep"),
    ],
)
def test_a_plan_that_json_cannot_keep_is_repaired(run, argument: str, problem: str) -> None:
    bad = plan(call("a")).replace('"2 * 3"', argument)
    made = run({"planner": [bad, plan(call("a"))]})
    assert (outcome(made), made.answer) == ("answered", "6")
    assert problem in made.steps[1].messages[-1]["content"]


def test_without_a_readable_plan_the_attempt_ends_as_no_plan(run) -> None:
    made = run({"planner": "no"}, settings={"max_repairs": 1})
    assert (outcome(made), made.answer, len(made.steps)) == ("no_plan", None, 2)


def test_a_failed_step_leads_to_a_revised_plan_that_keeps_what_is_done(run) -> None:
    made = run({"planner": [plan(noted("a", "one"), noted("b", "bad")), plan(noted("b", "{a}, two"))]})
    assert (outcome(made), made.answer) == ("answered", "noted noted one, two")
    assert done == ["one", "noted one, two"]
    asked = made.steps[1].messages[-1]["content"]
    assert "Steps that are done: a" in asked and '<result tool="a">\nnoted one\n</result>' in asked
    assert "cannot note that" in asked
    assert made.metadata["revisions"] == 1
    assert [step["id"] for step in made.metadata["plan"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("replies", "asked"),
    [
        ([plan(noted("b", "bad"))], "the same plan again"),
        ([plan(noted("b", "bad")), plan(noted("c", "bad")), plan(noted("b", "bad"))], "two plans in turn"),
    ],
)
def test_a_planner_that_repeats_itself_ends_as_plan_failed(run, replies, asked) -> None:
    made = run({"planner": replies}, settings={"max_replans": 5})
    assert outcome(made) == "plan_failed", asked
    assert made.answer is None and not done


def test_a_plan_that_failed_is_undone_in_reverse_order(run) -> None:
    steps = plan(noted("a", "one"), noted("b", "two"), noted("c", "bad"))
    made = run({"planner": steps}, settings={"undo": {"note": "erase"}, "max_replans": 0})
    assert outcome(made) == "rolled_back"
    assert done == ["one", "two", "not two, was 'noted two'", "not one, was 'noted one'"]
    assert made.metadata["states"] == {"a": "compensated", "b": "compensated", "c": "failed"}


def test_what_cannot_be_undone_ends_as_rollback_failed(run) -> None:
    made = run(
        {"planner": plan(noted("a", "stays"), noted("b", "bad"))},
        settings={"undo": {"note": "erase"}, "max_replans": 0},
    )
    assert outcome(made) == "rollback_failed"
    assert made.metadata["states"]["a"] == "compensation_failed"


def test_the_best_branch_runs_and_the_next_best_when_it_fails(run) -> None:
    proposals = [plan(noted("a", "poor")), plan(noted("a", "bad")), plan(noted("a", "good"))]
    made = run(
        {"planner": proposals, "verifier": ["2", "9", "I say 7/10"]},
        roles={role: ONLY_PLANNER[role] for role in ("executor", "generator")},
        settings={"strategy": "tree"},
    )
    assert (outcome(made), made.answer, done) == ("answered", "noted good", ["good"])
    assert [step.metadata.get("score") for step in made.steps[3:]] == [2.0, 9.0, 7.0]
    assert len(made.steps) == 6 and made.metadata["revisions"] == 1


def test_a_graph_joins_and_tolerates_what_its_join_allows(run) -> None:
    steps = plan(
        noted("a", "bad"),
        noted("b", "one"),
        noted("c", "two", needs=["a", "b"], join="any"),
        noted("d", "after {c}", needs=["c"]),
    )
    made = run({"planner": steps}, settings={"strategy": "graph", "max_replans": 0, "concurrency": 2})
    assert outcome(made) == "plan_failed"  # `a` failed for good, although `c` did without it
    made = run(
        {"planner": plan(*(json.loads(steps)["steps"][1:2]), noted("d", "{b}!"))}, settings={"strategy": "graph"}
    )
    assert done == ["one", "noted one!"] and outcome(made) == "answered"


def test_a_review_asks_for_more_until_the_results_suffice(run) -> None:
    made = run(
        {"planner": [plan(call("a")), plan(call("b", "{a} * 7"))], "verifier": ["no, it is half of it", "yes"]},
        roles={role: ONLY_PLANNER[role] for role in ("executor", "generator")},
        settings={"review": True},
    )
    assert (outcome(made), made.answer) == ("answered", "42")
    assert [step.role for step in made.steps] == ["planner", "verifier", "planner", "verifier"]


def test_budgets_end_the_attempt_under_their_name(run) -> None:
    steps = plan(call("a"), call("b"), call("c"))
    made = run({"planner": steps}, settings={"budget": {"tool_calls": 2}})
    assert (outcome(made), made.metadata["limit"], len(made.tool_calls)) == ("budget", "tool_calls", 2)
    assert made.answer == "6"
    made = run({"planner": steps}, max_tool_calls=1)
    assert (outcome(made), made.metadata["limit"]) == ("budget", "tool_calls")
    made = run({"planner": "no"}, settings={"budget": {"model_calls": 1}})
    assert (outcome(made), made.metadata["limit"], len(made.steps)) == ("budget", "model_calls", 1)


def test_an_engine_that_fails_during_a_step_fails_the_attempt_as_infrastructure(run) -> None:
    made = run({"planner": plan({"id": "a", "task": "think"}), "executor": EngineError("it is gone")}, roles={})
    assert (made.status, made.error) == (Status.FAILED, "it is gone")
    assert made.metadata["failure"] == "infrastructure" and made.metadata["outcome"] == "unfinished"


def test_wrong_settings_are_refused_with_the_nearest_name(run) -> None:
    with pytest.raises(ConfigError, match="did you mean 'erase'"):
        run({"planner": plan(call("a"))}, settings={"undo": {"note": "erasse"}})
    with pytest.raises(ConfigError, match="branches applies to the strategy 'tree'"):
        run({"planner": plan(call("a"))}, settings={"branches": 2})


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("plan_and_execute", {"concurrency": 2}),
        ("plan_and_execute", {"budget": {"seconds": 5}}),
        ("coordinator", {"concurrency": 2}),
    ],
)
def test_a_deterministic_run_refuses_what_depends_on_timing(name: str, setting: dict[str, Any]) -> None:
    flow = {"name": name, "settings": setting}
    config = {"name": "timed", "tasks": {"sources": [{"type": "direct"}]}, "flow": flow}
    assert ms.load_config({**config, "trainer": {"deterministic": False}}).flow.settings == setting
    with pytest.raises(ConfigError, match="would depend on timing"):
        ms.load_config({**config, "trainer": {"deterministic": True}})


TOOLS = {one.name: one for one in load_tools(("calculator", "search"))}


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([call("a", needs=["b"]), call("b", needs=["a"])], "in a circle: a -> b -> a"),
        ([call("a", "{b}"), call("b", "{a}")], "in a circle"),
        ([call("a", needs=["z"])], "it uses 'z', which is no other step"),
        ([call("input")], "an id is a name"),
        ([{"id": "a", "tool": "search", "args": {"expression": "1"}}], "'search' has no parameter 'expression'"),
        ([{"id": "a", "tool": "search"}], "'search' needs 'query'"),
        ([call("a"), call("b"), call("c"), call("d")], "at most 3 steps"),
        ([{"id": "a", "task": "x", "tool": "search"}], "either a tool or a task"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(steps, problem) -> None:
    with pytest.raises(UnreadablePlan, match=problem):
        read_steps(plan(*steps), TOOLS, strategy="graph", most=3)


def test_ids_of_a_revision_do_not_collide_with_kept_steps() -> None:
    kept = {"a": PlannedStep(id="a", task="x"), "b": PlannedStep(id="b", task="y")}
    new = [
        PlannedStep(id="a", task="x"),
        PlannedStep(id="b", task="z {a}"),
        PlannedStep(id="c", task="{b}", needs=("b",)),
    ]
    assert renamed(new, kept) == [
        PlannedStep(id="b_2", task="z {a}"),
        PlannedStep(id="c", task="{b_2}", needs=("b_2",)),
    ]


def test_a_result_that_fills_a_number_becomes_one() -> None:
    step = PlannedStep(id="b", tool="multiply", args={"x": "{a}", "y": 2})
    tool = {one.name: one for one in load_tools(("multiply",))}["multiply"]
    names = list(tool.parameters["properties"])
    step = PlannedStep(id="b", tool="multiply", args={names[0]: "{a}", names[1]: 2})
    assert filled(step, {"a": "6"}, tool).args == {names[0]: 6, names[1]: 2}
    assert filled(PlannedStep(id="b", tool="t", args={"x": ["{a}!", {"y": "{other}"}]}), {"a": "6"}).args == {
        "x": ["6!", {"y": "{other}"}]
    }


def test_the_schema_accepts_what_can_be_read_and_nothing_else() -> None:
    validator = Draft202012Validator(steps_schema(list(TOOLS.values()), "graph", True, 3))
    good = [call("a", needs=["b"]), {"id": "b", "task": "think"}]
    assert validator.is_valid({"steps": good})
    for bad in ([], [call("a", tool="other")], [{"id": "A", "task": "x"}], good * 2, [{**good[0], "join": "most"}]):
        assert not validator.is_valid({"steps": bad})


def test_the_schema_of_a_chain_has_no_ids_and_results_stand_for_any_argument() -> None:
    multiply = {one.name: one for one in load_tools(("multiply",))}["multiply"]
    validator = Draft202012Validator(steps_schema([multiply], "chain", False, 2))
    first, second = multiply.parameters["properties"]

    def valid(value: Any, **more: Any) -> bool:
        step = {**more, "tool": "multiply", "args": {first: value, second: 2}}
        return validator.is_valid({"steps": [step]})

    assert valid(3) and valid("{s1}")
    assert not valid("three") and not valid("3 {s1}") and not valid(3, id="a")


def test_compiled_steps_are_a_plan_with_dependencies() -> None:
    steps = [PlannedStep(id="a", task="x"), PlannedStep(id="b", task="{a} {old}"), PlannedStep(id="c", task="y")]
    chain = compile_steps(steps, "chain", earlier={"old": 1})
    assert [node["after"] for node in chain["nodes"]] == [[], ["a"], ["b"]]
    graph = compile_steps(steps, "graph", earlier={"old": 1})
    assert [node["after"] for node in graph["nodes"]] == [[], ["a"], []]
    assert graph["nodes"][1]["args"]["given"] == {"old": {"$literal": 1}, "a": {"$ref": ["a"], "default": ""}}


def test_a_role_chooses_which_ready_step_starts(run) -> None:
    steps = (noted("a", "one"), noted("b", "two"), noted("c", "three", needs=["b"]))
    settings = {"strategy": "graph", "choose": "role"}
    made = run({"planner": plan(*steps), "scheduler": ["b", "c"]}, settings=settings)
    assert (outcome(made), done) == ("answered", ["two", "three", "one"])
    first, second = (step for step in made.steps if step.role == "scheduler")
    assert first.messages[-1]["content"].splitlines()[1:] == [
        "Which step starts next?",
        "a: note(what='one'); 0 wait for it",
        "b: note(what='two'); 1 wait for it",
    ]
    assert (
        first.trainable
        and "a: note" in second.messages[-1]["content"]
        and "b: note" not in second.messages[-1]["content"]
    )
    # As a rule, or with room for all of them, nobody is asked.
    for more in ({"roles": {**ONLY_PLANNER, "scheduler": RoleConfig(engine="rules")}}, {}):
        wide = settings if more else {**settings, "concurrency": 3}
        made = run({"planner": plan(*steps)}, settings=wide, **more)
        assert [step.role for step in made.steps] == ["planner"]


def test_only_the_steps_of_a_graph_can_be_chosen(run) -> None:
    with pytest.raises(ConfigError, match="choose applies to the strategy 'graph'"):
        run({"planner": plan(call("a"))}, settings={"choose": "role"})
