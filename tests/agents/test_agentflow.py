"""The four modules and their memory: order of calls, prompts, and when the loop ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from midstream.agents.config import RoleConfig
from midstream.core.errors import ConfigError
from midstream.core.types import Status, Task, Trajectory
from midstream.record.store import Store
from midstream.rollouts import groups_of


def run(worker, attempt) -> Trajectory:
    return asyncio.run(worker.run(attempt))


def roles(trajectory: Trajectory) -> list[str]:
    return [step.role for step in trajectory.steps]


def asked(trajectory: Trajectory) -> list[str]:
    """The last message of each step's prompt."""
    return [step.messages[-1]["content"] for step in trajectory.steps]


def test_the_loop_runs_until_the_planner_needs_no_other_tool(make_worker, by_role, attempt) -> None:
    says = by_role(planner=["calculator: 12 * 3", "calculator: 36 + 1", "none"], generator=" 37 ")
    trajectory = run(make_worker(says), attempt("What is 12 * 3 + 1?"))
    assert roles(trajectory) == ["planner", "planner", "planner", "generator"]
    assert asked(trajectory) == [
        "What is 12 * 3 + 1?\n[planner 1/3]",
        "36\n[planner 2/3]",
        "37\n[planner 3/3]",
        "[generator]",
    ]
    assert (trajectory.answer, trajectory.turns, trajectory.status) == ("37", 3, Status.COMPLETED)
    assert [(call.tool, call.ok, call.step_index) for call in trajectory.tool_calls] == [
        ("calculator", True, 0),
        ("calculator", True, 1),
    ]
    assert [turn["verdict"] for turn in trajectory.metadata["turns"]] == [False, False, True]
    assert trajectory.steps[0].metadata["action"]["arguments"] == {"expression": "12 * 3"}


@pytest.mark.parametrize(
    ("question", "plans", "reasons"),
    [
        ("What is the capital of Peru?", ["echo: Lima"], ["what was asked for is there"]),
        (
            "What is twice the area?",
            ["echo: 5", "calculator: 5 * 2"],
            ["the question asks for a calculation", "what was asked for is there"],
        ),
        (
            "What is the capital?",
            ["calculator: 2 +", "echo: Lima"],
            ["the call failed: raised", "what was asked for is there"],
        ),
        (
            "What is the capital?",
            ["who knows", "none"],
            ["no action could be read", "the planner needs no other tool"],
        ),
        ("What is the sum?", ["echo: 1"] * 3, ["the question asks for a calculation"] * 3),
    ],
)
def test_the_evidence_rule_stops_when_the_required_result_is_found(
    make_worker, by_role, attempt, question: str, plans: list[str], reasons: list[str]
) -> None:
    settings = {"notation": "compact", "fields": [], "stop_rule": "evidence"}
    worker = make_worker(by_role(planner=plans, generator="x"), settings=settings)
    trajectory = run(worker, attempt(question))
    assert [turn["reason"] for turn in trajectory.metadata["turns"]] == reasons
    assert [turn["verdict"] for turn in trajectory.metadata["turns"]][:-1] == [False] * (len(reasons) - 1)


def test_turns_are_limited_and_the_planner_sees_the_limit(make_worker, by_role, attempt) -> None:
    says = by_role(planner="echo: on", generator="done")
    settings = {"notation": "compact", "fields": [], "max_turns": 4}
    trajectory = run(make_worker(says, settings=settings), attempt())
    assert roles(trajectory) == ["planner"] * 4 + ["generator"]
    assert [text.splitlines()[-1] for text in asked(trajectory)[:4]] == [f"[planner {n}/4]" for n in (1, 2, 3, 4)]
    assert trajectory.turns == 4


def test_a_planner_that_needs_no_tool_calls_none(make_worker, by_role, attempt) -> None:
    trajectory = run(make_worker(by_role(planner="none", generator="blue")), attempt("Which colour?"))
    assert (trajectory.tool_calls, trajectory.turns, trajectory.answer) == ((), 1, "blue")


def test_parse_errors_are_shown_to_the_planner_and_counted(make_worker, by_role, attempt) -> None:
    says = by_role(planner=["I think...", "calcualtor: 1", "calculator: ", "x"], generator="?")
    settings = {"notation": "compact", "fields": [], "max_turns": 3}
    trajectory = run(make_worker(says, settings=settings), attempt())
    assert [call.error_kind for call in trajectory.tool_calls] == ["unparsed", "unknown_tool", "invalid_arguments"]
    observations = asked(trajectory)
    assert observations[1].startswith("Error: write `TOOL: INPUT`")
    assert "did you mean 'calculator'?" in observations[2]
    assert "expression" in observations[3]
    assert "write `TOOL" in trajectory.steps[0].metadata["parse_error"]
    assert trajectory.steps[1].metadata["parsed"] is True


@pytest.mark.parametrize("written", ["k" * 9000, '{"' + "k" * 9000 + '": 1}', "k" * 9000 + ": 1"])
@pytest.mark.parametrize("notation", ["json", "compact"])
def test_error_feedback_is_bounded_for_any_text(make_worker, by_role, attempt, written, notation) -> None:
    worker = make_worker(
        by_role(planner=written, generator="?"), settings={"notation": notation, "fields": []}, max_result_chars=400
    )
    trajectory = run(worker, attempt())
    assert all(len(call.result) <= 400 for call in trajectory.tool_calls)
    assert all(len(text) < 500 for text in asked(trajectory))


def test_a_verifier_with_an_engine_decides_when_to_stop(make_worker, by_role, attempt) -> None:
    says = by_role(planner="calculator: 2 * 3", verifier=["No, look again", " Yes: 6 answers it"], generator="6")
    trajectory = run(make_worker(says, rules=("analysis", "executor")), attempt())
    assert roles(trajectory) == ["planner", "verifier", "planner", "verifier", "generator"]
    assert [step.metadata["verdict"] for step in trajectory.steps if step.role == "verifier"] == [False, True]
    assert trajectory.metadata["turns"][1]["reason"] == "Yes: 6 answers it"


def test_analysis_and_executor_with_engines_are_called_in_order(make_worker, by_role, attempt) -> None:
    says = by_role(analysis="needs arithmetic", planner="calculator: all of it", executor="7 * 8", generator="56")
    settings = {"notation": "compact", "fields": [], "stop_rule": "evidence"}
    trajectory = run(make_worker(says, rules=("verifier",), settings=settings), attempt())
    assert roles(trajectory) == ["analysis", "planner", "executor", "generator"]
    assert trajectory.metadata["analysis"] == "needs arithmetic"
    (call,) = trajectory.tool_calls
    assert (call.arguments, call.result, call.step_index) == ({"expression": "7 * 8"}, "56", 2)


def test_a_generator_without_engine_answers_with_the_last_result(make_worker, by_role, attempt) -> None:
    silent = ("analysis", "executor", "verifier", "generator")
    for last in ("calculator: (", "none"):
        says = by_role(planner=["calculator: 5 + 5", "calculator: 1 +", last])
        trajectory = run(make_worker(says, rules=silent), attempt())
        assert (trajectory.answer, roles(trajectory)) == ("10", ["planner"] * 3)
    assert run(make_worker(by_role(planner="hm"), rules=silent), attempt()).answer == ""


def test_the_agent_sees_masked_results_and_rules_use_unmasked_ones(make_worker, by_role, attempt, tmp_path) -> None:
    says = by_role(planner=["echo: one two three four", "none"])
    silent = ("analysis", "executor", "verifier", "generator")
    with Store(tmp_path / "store.sqlite") as store:
        worker = make_worker(says, rules=silent, mask_results={"echo": 0.5}, worker={"store": store})
        trained = run(worker, replace(attempt(uid="trained"), mask_seed=7))
        evaluated = run(worker, attempt(uid="evaluated"))
        assert store.trajectories.get("trained").tool_calls == trained.tool_calls
    (call,) = trained.tool_calls
    assert call.result.split().count("[MASK]") == 2 and call.unmasked == "one two three four"
    assert asked(trained)[1] == f"{call.result}\n[planner 2/3]"
    assert asked(evaluated)[1] == "one two three four\n[planner 2/3]"
    assert trained.answer == evaluated.answer == "one two three four"


def test_attempts_at_one_task_in_one_step_have_the_same_masked_words() -> None:
    tasks = [Task(id=name, prompt="?") for name in "ab"]
    first = groups_of(tasks, 2, prefix="train-1", seed=0, train_step=1, masked=True)
    greedy = groups_of(tasks, 1, prefix="train-1-greedy", seed=0, train_step=1, masked=True)
    later = groups_of(tasks, 1, prefix="train-2", seed=0, train_step=2, masked=True)
    seeds = [attempt.mask_seed for attempt in first]
    assert seeds[0] == seeds[1] == greedy[0].mask_seed != seeds[2] == seeds[3]
    assert None not in seeds and not {a.mask_seed for a in later} & set(seeds)
    assert {a.mask_seed for a in groups_of(tasks, 2, prefix="val", seed=0, train_step=1)} == {None}


def test_the_tool_call_budget_is_per_trajectory(make_worker, by_role, attempt) -> None:
    says = by_role(planner="calculator: 1 + 1", generator="2")
    worker = make_worker(says, max_tool_calls=2)
    for uid in ("a", "b"):
        trajectory = run(worker, attempt(uid=uid))
        assert [call.error_kind for call in trajectory.tool_calls] == ["", "", "over_budget"]


def test_exceeding_the_memory_budget_starts_a_counted_branch(make_worker, by_role, attempt) -> None:
    says = by_role(planner="echo: " + "many words " * 40, generator="done")
    settings: dict[str, Any] = {"notation": "compact", "fields": [], "max_turns": 5, "memory_tokens": 900}
    trajectory = run(make_worker(says, settings=settings), attempt())
    assert trajectory.metadata["shortened"] > 0
    reasons = [step.branch_reason for step in trajectory.steps]
    assert set(reasons) == {"", "edited_history"}
    for step in trajectory.steps:
        if step.parent is not None:
            parent = trajectory.steps[step.parent]
            known = parent.prompt_ids + parent.response_ids
            assert step.prompt_ids[: len(known)] == known
    roomy = run(make_worker(says, settings={**settings, "memory_tokens": 9000}), attempt())
    assert {step.branch_reason for step in roomy.steps} == {""}


def test_unknown_settings_and_roles_are_named(make_worker, by_role, attempt) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_turns'"):
        run(make_worker(by_role(), settings={"max_turn": 3}), attempt())
    with pytest.raises(ConfigError, match=r"flow\.roles\.planer: (?s:.*)did you mean 'planner'"):
        make_worker(by_role(), roles={"planer": RoleConfig()})


def test_the_demonstration_of_a_task_is_hidden_from_the_agent(make_worker, by_role, attempt) -> None:
    says = by_role(planner="none", generator="x")
    plan = [{"tool": "calculator", "arguments": {"expression": "SECRET"}}]
    trajectory = run(make_worker(says), attempt(plan=plan, needs=("calculator",)))
    assert all("SECRET" not in message["content"] for step in trajectory.steps for message in step.messages)
