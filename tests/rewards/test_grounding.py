"""Components that check answers against tool results and plans; BLEU equals sacrebleu's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.types import Step, Task, ToolCall, Trajectory
from midstream.rewards.compose import RewardConfig, RewardFunction


def value(name: str, answer: str | None, *calls: ToolCall, **changes: Any) -> tuple[float | None, list[float | None]]:
    metadata = changes.pop("task_metadata", {})
    task = Task(
        id="t", prompt="How tall is the Eiffel Tower?", answer=changes.pop("reference", None), metadata=metadata
    )
    steps = tuple(Step(prompt_ids=(1,), response_ids=(2,), step_index=n, trajectory_uid="u") for n in range(3))
    made = Trajectory(uid="u", prompt_uid="p", task=task, steps=steps, answer=answer, tool_calls=calls, **changes)
    scored = asyncio.run(RewardFunction(RewardConfig(components={name: 1.0})).score(made))
    return scored.rewards[name], [step.reward for step in scored.steps]


def search(result: str, step: int = 0, query: str = "Eiffel Tower height", ok: bool = True) -> ToolCall:
    return ToolCall(tool="search", arguments={"q": query}, ok=ok, result=result, step_index=step)


def calculate(expression: str, result: str, ok: bool = True) -> ToolCall:
    return ToolCall(tool="calculator", arguments={"expression": expression}, ok=ok, result=result, step_index=1)


HEIGHT = "The Eiffel Tower is 330 metres tall."


@pytest.mark.parametrize(
    ("answer", "calls", "total"),
    [
        ("330 metres", (search(HEIGHT),), 0.0),
        ("660", (search(HEIGHT), calculate("330*2", "660")), 0.0),  # used by a later call
        ("I guess 300", (search(HEIGHT),), 1.0),
        ("The Eiffel Tower", (search(HEIGHT),), 1.0),  # words that the question had already
        ("330", (search("Paris is in France", 0, "Paris"), search(HEIGHT, 1)), 1.0),
        (None, (search(HEIGHT),), 1.0),
        ("<think>330</think>", (search(HEIGHT),), 1.0),
        ("330", (search(HEIGHT, ok=False),), None),
        ("330", (search(" "),), None),
        ("330", (calculate("1", "1"),), None),
    ],
)
def test_unused_search(answer: str | None, calls: tuple[ToolCall, ...], total: float | None) -> None:
    assert value("unused_search", answer, *calls)[0] == total


def test_an_unused_search_costs_at_its_step() -> None:
    assert value("unused_search", "330", search("Paris is in France", 0, "Paris"), search(HEIGHT, 1))[1] == [
        1.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("plan", "needs", "calls", "share"),
    [
        (["search", "calculator"], None, (search("x"), calculate("1", "1")), 0.0),
        (["search", "calculator"], None, (search("x"),), 0.5),
        ([{"tool": "search"}, {"tool": "search"}], None, (search("x"),), 0.5),
        (["search"], None, (search("x", ok=False),), 1.0),
        (None, ["search"], (), 1.0),
        (None, ["search"], (search("x"),), 0.0),
        (None, None, (), None),
        ([], None, (), None),
    ],
)
def test_skipped_plan(plan: Any, needs: Any, calls: tuple[ToolCall, ...], share: float | None) -> None:
    changes: dict[str, Any] = {"metadata": {} if plan is None else {"plan": plan}}
    changes["task_metadata"] = {} if needs is None else {"needs": needs}
    assert value("skipped_plan", "330", *calls, **changes)[0] == share
    assert value("skipped_plan", None, *calls, **changes)[0] is None


@pytest.mark.parametrize(
    ("answer", "result", "verdict"),
    [
        ("330 metres", HEIGHT, 0.0),
        ("The answer is 300.", HEIGHT, 1.0),
        ("3.14", "3.14159", 0.0),  # rounded
        ("3.15", "3.14159", 1.0),
        ("1,234", "1234", 0.0),
        ("Paris", "The capital is Paris.", 0.0),
        ("London", "The capital is Paris.", 1.0),
        ("<think>London</think>Paris", "The capital is Paris.", 0.0),
        ("yes", "The capital is Paris.", None),
        ("B", "The capital is Paris.", None),
        ("Paris", " ", None),
        (None, "Paris", None),
    ],
)
def test_inconsistent(answer: str | None, result: str, verdict: float | None) -> None:
    assert value("inconsistent", answer, search(result))[0] == verdict


def test_bleu_is_sacrebleus() -> None:
    # sacrebleu 2.6.0: BLEU(effective_order=True).sentence_score("the cat sat on the mat", ["the cat sat on a mat"])
    assert value("bleu", "the cat sat on the mat", reference="the cat sat on a mat")[0] == pytest.approx(
        0.537285, abs=1e-6
    )
    assert value("bleu", "<think>x</think>the cat", reference=["a dog", "the cat"])[0] == 1.0
    assert value("bleu", "巴黎是首都", reference="巴黎是法国首都")[0] == pytest.approx(0.335160, abs=1e-6)
    assert value("bleu", None, reference="the cat")[0] == 0.0
    assert value("bleu", "the cat")[0] is None
