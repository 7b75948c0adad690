"""Rewards of workflows: correctness gates them, and nothing but the workflow's own answer earns one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.types import Step, Task, Trajectory
from midstream.rewards.compose import RewardConfig, RewardFunction
from midstream.rewards.programs import hidden_tests, passed_tests, program_of
from midstream.tools.sandbox import SandboxConfig, open_sandbox

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


def test_correct_and_cheap_beats_correct_beats_wrong_beats_invalid() -> None:
    cheap, dear = total("workflow"), total("workflow", model_calls=10)
    assert cheap == 1 and dear == pytest.approx(0.91)
    assert total("workflow", "5") == total("workflow", "5", model_calls=9) == 0
    assert total("workflow", None, valid=False, status="failed") == pytest.approx(-0.2)


def test_the_answer_of_a_fallback_earns_nothing() -> None:
    for layer in ("instantiate", "execute", "direct"):
        assert total("workflow", fallback=layer) == 0
        assert total("seed003-5", fallback=layer) == -10
    assert total("seed003-5", status="failed") == total("seed003-3", status="failed") == -10


def test_the_dimensions_of_seed_003_have_its_weights_and_range() -> None:
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


@pytest.mark.parametrize(
    "program",
    [
        "class T:\n    def __eq__(self, other): return True\ndef add(a, b): return T()",
        "class T(int):\n    def __eq__(self, other): return True\ndef add(a, b): return T(9)",
        "class add:\n    def __init__(self, a, b): pass\n    def __eq__(self, other): return True",
        "class M(type):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "class T(metaclass=M):\n    def __eq__(self, other): return True\nadd = lambda a, b: T()",
        "import builtins, ast\nold = builtins.compile\n"
        "class V(ast.NodeTransformer):\n    def visit_Assert(self, node): return ast.copy_location(ast.Pass(), node)\n"
        "def new(code, *rest, **named):\n"
        "    return old(V().visit(code) if isinstance(code, ast.AST) else code, *rest)\n"
        "builtins.compile = new\ndef add(a, b): pass",
        "import ast\nold = ast.parse\nast.parse = lambda code, *r, **n: old(code.replace('assert', '0 and'), *r, **n)\n"
        "def add(a, b): pass",
        "import builtins\nbuiltins.exec = lambda *rest: None\ndef add(a, b): pass",
    ],
)
def test_a_program_that_tricks_its_tests_passes_nothing(program: str) -> None:
    assert asyncio.run(passed_tests(program, CODE)) == [False] * 3


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert f(2) == [{'a': {1, 2}}, (None, 1.5)]",
         "class T(dict):\n    __eq__ = lambda a, b: True\ndef f(x): return [T(), (None, 1.5)]"),
        ("x = [2, 1]\nf(x)\nassert x == [1, 2]",
         "class T:\n    __eq__ = lambda a, b: True\ndef f(x): x[:] = [T(), T()]"),
        ("assert abs(f(2) - 2) < 0.1", "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 9"),
        ("assert sorted(f(2)) == [1]",
         "class T:\n    __eq__ = lambda a, b: True\ndef sorted(x): return T()\ndef f(x): return 9"),
        ("import math\nassert math.isclose(f(2), 2)",
         "import math\ndef f(x):\n    return 9\nmath.isclose = lambda a, b: True"),
    ],
)  # fmt: skip
def test_a_trick_within_a_container_an_argument_or_a_helper_passes_nothing(test: str, program: str) -> None:
    assert asyncio.run(passed_tests(program, {"tests": [test], "entry_point": "f"})) == [False]


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert f(2) == [{'a': {1, 2}}, (None, 1.5)]", "def f(x): return [{'a': {1, x}}, (None, 1.5)]"),
        ("x = [2, 1]\nf(x)\nassert x == [1, 2]", "def f(x): x.sort()"),
        ("assert list(f(2)) == [0, 1]", "def f(x):\n    yield from range(x)"),
        ("assert f('aab') == {'a': 2, 'b': 1}", "from collections import Counter\ndef f(x): return Counter(x)"),
        ("assert f(3)(4) == 7", "def f(x): return lambda y: x + y"),
        ("import asyncio\nassert asyncio.run(f(3)) == 4", "async def f(x): return x + 1"),
        ("s = f()\ns.push(3)\nassert len(s) == 1 and s.pop() == 3",
         "class f:\n    def __init__(self): self.all = []\n    def push(self, x): self.all.append(x)\n"
         "    def pop(self): return self.all.pop()\n    def __len__(self): return len(self.all)"),
        ("assert back(f('a')) == 'a'", "def f(x): return x + '!'\ndef back(x): return x[:-1]"),
        ("try:\n    f(0)\n    assert False\nexcept ValueError:\n    pass", "def f(x): raise ValueError(x)"),
        ("assert f(2) is True and math.floor(1.5) == 1", "import math\ndef f(x): return x > 1"),
        ("def g(x):\n    return x + 1\nassert f(g, 2) == 4", "def f(g, x): return g(g(x))"),
    ],
)  # fmt: skip
def test_an_honest_program_passes_whatever_it_returns(test: str, program: str) -> None:
    assert asyncio.run(passed_tests(program, {"tests": [test], "entry_point": "f"})) == [True]


def test_the_small_interpreter_grades_too_and_takes_no_class() -> None:
    async def act(program: str) -> list[bool]:
        sandbox = await open_sandbox(SandboxConfig(backend="interpreter"))
        try:
            return await passed_tests(program, CODE, sandbox)
        finally:
            await sandbox.close()

    pytest.importorskip("pydantic_monty")
    assert asyncio.run(act("def add(a, b):\n    return a + b")) == [True] * 3
    lying = "class T:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return T()"
    assert asyncio.run(act(lying)) == [False] * 3


def test_programs_and_tests_are_found() -> None:
    blocks = "```python\ndef add(a, b):\n    return 1\n```\n```python\nprint(add(1, 2))\n```"
    assert program_of(blocks, "add").startswith("def add") and program_of(blocks).startswith("print")
    assert program_of("<think>```python\nx\n```</think>def add(): pass", "add") == "def add(): pass"
    human_eval = {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3\n", "entry_point": "add"}
    assert hidden_tests(human_eval)[0][0].endswith("check(add)")
    assert asyncio.run(passed_tests("def add(a, b):\n    return a + b", human_eval)) == [True]
    assert hidden_tests("4") == ((), "")
