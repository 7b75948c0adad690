"""Rewards of workflows: correctness gates them, and nothing but the workflow's own answer earns one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.types import Step, Task, Trajectory
from midstream.rewards.compose import RewardConfig, RewardFunction
from midstream.rewards.programs import hidden_tests, passed_tests, program_of

CODE = {"tests": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"], "entry_point": "add"}


def reward(
    preset: str, answer: str | None = "4", reference: Any = "4", kind: str = "math", **record: Any
) -> Trajectory:
    ran = {
        "valid": True, "form": "hybrid", "status": "completed", "fallback": "", "answer": answer, "model_calls": 1,
        "cost_usd": 0.0004, "latency_s": 1.0, "operators": ["Custom"], "prompt_text": "Solve it step by step.",
    }  # fmt: skip
    trajectory = Trajectory(
        uid="u", prompt_uid="p", task=Task(id="t", prompt="2+2?", answer=reference, kind=kind), answer=answer,
        steps=(Step(prompt_ids=(1,), response_ids=(2,)),), metadata={"workflow": {**ran, **record}},
    )  # fmt: skip
    return asyncio.run(RewardFunction(RewardConfig(preset=preset, success="workflow_solved")).score(trajectory))


def total(*arguments: Any, **options: Any) -> float:
    value = reward(*arguments, **options).reward
    assert value is not None
    return value


def test_ours_orders_right_and_cheap_over_right_over_wrong_over_invalid() -> None:
    cheap, dear = total("workflow"), total("workflow", model_calls=10)
    assert cheap == 1 and dear == pytest.approx(0.91)
    assert total("workflow", "5") == total("workflow", "5", model_calls=9) == 0
    assert total("workflow", None, valid=False, status="failed") == pytest.approx(-0.2)


def test_a_fallback_s_answer_earns_nothing() -> None:
    for layer in ("instantiate", "execute", "direct"):
        assert total("workflow", fallback=layer) == 0
        assert total("seed003-5", fallback=layer) == -10
    assert total("seed003-5", status="failed") == total("seed003-3", status="failed") == -10


def test_seed_003_s_dimensions_have_its_weights_and_range() -> None:
    best = reward("seed003-5")
    assert best.reward == pytest.approx(9.5)  # the seed's example
    assert best.rewards == {
        "workflow_solved": 1.0, "seed003_correctness": 10.0, "seed003_efficiency": 10.0, "seed003_simplicity": 10.0,
        "seed003_format": 10.0, "seed003_repetition": 0.0,
    }  # fmt: skip
    assert total("seed003-3") == 10
    assert total("seed003-5", "7") == pytest.approx(9.5 - 13)
    assert reward("seed003-5", cost_usd=0.02).rewards["seed003_efficiency"] == -3
    assert reward("seed003-5", latency_s=100.0, operators=["Custom"] * 9).rewards["seed003_simplicity"] == -5
    assert reward("seed003-5", form="code").rewards["seed003_format"] == 0
    assert reward("seed003-5", prompt_text="go on " * 50).rewards["seed003_repetition"] == pytest.approx(
        -9.796, abs=1e-3
    )


def test_an_unknown_cost_is_not_a_cost_of_0() -> None:
    scored = reward("seed003-5", cost_usd=None)
    assert scored.rewards["seed003_efficiency"] is None and scored.reward == pytest.approx(8.0)


def test_near_numbers_and_verbose_dumps_are_wrong() -> None:
    """Seed 003's implementation takes 4.5 for 4 and any text that contains the answer."""
    assert total("workflow", "4.5") == 0
    assert total("workflow", "It is one of 1, 2, 3, 4, 5.", "Paris", "qa") < 0.1
    assert total("workflow", "Paris", "Paris", "qa") == 1
    assert 0 < total("workflow", "the city Paris", "Paris", "qa") < 1
    assert total("workflow", "B", "B", "choice") == 1
    assert total("workflow", "B or C", "B", "choice") == 0


def test_code_is_graded_by_all_of_its_hidden_tests() -> None:
    right = "Here:\n```python\ndef add(a, b):\n    return a + b\n```"
    assert total("workflow", right, CODE, "code") == 1
    half = right.replace("a + b", "abs(a) + b")
    assert total("workflow", half, CODE, "code") == 0
    assert reward("seed003-5", half, CODE, "code").rewards["seed003_correctness"] == pytest.approx(-10 + 20 * 2 / 3)


@pytest.mark.parametrize(
    "program",
    [
        "def sub(a, b):\n    return a + b",
        "def add(a, b):\n    raise SystemExit",
        "import os\ndef add(a, b):\n    os._exit(0)",
        "raise SystemExit(0)",
        "def add(a, b:\n    return",
        "",
    ],
)
def test_a_program_that_ends_or_breaks_passes_nothing(program: str) -> None:
    assert asyncio.run(passed_tests(program, CODE)) == [False] * 3


def test_programs_and_tests_are_found() -> None:
    blocks = "```python\ndef add(a, b):\n    return 1\n```\n```python\nprint(add(1, 2))\n```"
    assert program_of(blocks, "add").startswith("def add") and program_of(blocks).startswith("print")
    assert program_of("<think>```python\nx\n```</think>def add(): pass", "add") == "def add(): pass"
    human_eval = {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"}
    assert hidden_tests(human_eval)[0][0].endswith("check(add)")
    assert asyncio.run(passed_tests("def add(a, b):\n    return a + b", human_eval)) == [True]
    assert hidden_tests("4") == ((), "")
