"""Workflows on the plan executor: a run that was interrupted goes on and repeats nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.workflows import samples

from midstream.core.errors import EngineError, RunError
from midstream.core.prices import Price
from midstream.workflows import OPERATORS, RunSettings, ScriptedModel, WorkflowRunner
from midstream.workflows.checker import checked_workflow
from midstream.workflows.ir import Workflow
from midstream.workflows.operators import operator
from midstream.workflows.operators.context import OperatorContext
from midstream.workflows.run.durable import DurableRuns
from midstream.workflows.run.trace import RunStatus, WorkflowRun
from midstream.workflows.sub_workflow import sub_workflow

TWO = "a = await self.custom(input='1')\nb = await self.custom(input='2')\nreturn a['response'] + b['response']"
LOOP = """
xs = []
for i in range(4):
    x = await self.custom(input=problem)
    xs.append(x['response'])
return xs[0]
"""
CHILD = """
import asyncio, os, signal, sys
from tests.workflows.test_durable import TWO, durable, workflow
from midstream.workflows import ScriptedModel

def reply(messages, sampling):
    text = str(messages[0]["content"])
    print("asked", text, flush=True)
    if text == "2" and sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"<{text}>"

print(asyncio.run(durable(ScriptedModel(reply), workflow(TWO), sys.argv[1])).answer)
"""


def workflow(body: str, declared: str = "custom=Custom") -> Workflow:
    return checked_workflow(samples.workflow(declared, body))


async def durable(
    model: ScriptedModel, of: Workflow, store: Path | str, uid: str = "r", **settings: Any
) -> WorkflowRun:
    settings = {"retries": 0, "temperature": 1.0, **settings}
    async with (
        WorkflowRunner(model, settings=RunSettings(**settings)) as runner,
        DurableRuns(runner, store) as runs,
    ):
        return await runs.run(of, "p", uid=uid)


def test_a_killed_process_is_continued_by_another_which_asks_only_for_the_rest(tmp_path: Path) -> None:
    def child(mode: str) -> tuple[int, list[str]]:
        arguments = [sys.executable, "-c", CHILD, str(tmp_path / "runs.sqlite"), mode]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
        return done.returncode, done.stdout.splitlines()

    assert child("dies") == (-signal.SIGKILL, ["asked 1", "asked 2"])
    assert child("lives") == (0, ["asked 2", "<1><2>"])
    assert child("lives") == (0, ["<1><2>"])  # it ended: nothing is asked any more


def test_a_run_that_failed_because_of_a_service_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "runs.sqlite"
    first = asyncio.run(durable(ScriptedModel(["one", EngineError("down")]), workflow(TWO), store))
    assert (first.status, first.cause) == (RunStatus.FAILED, "infrastructure") and "down" in first.error
    second = ScriptedModel(["two"])
    ran = asyncio.run(durable(second, workflow(TWO), store))
    assert ran.answer == "onetwo" and len(second.asked) == 1 and ran.model_calls == 2
    assert [node.replayed for node in ran.nodes] == [True, False]


def test_a_run_that_goes_on_draws_the_seeds_and_keeps_the_budgets_of_a_whole_one(tmp_path: Path) -> None:
    store, of = tmp_path / "runs.sqlite", workflow(LOOP)

    def interrupted() -> ScriptedModel:
        return ScriptedModel(["a", "b", EngineError("killed")], price=Price(1e6, 1e6))

    whole, rest = ScriptedModel("c"), ScriptedModel("c")
    asyncio.run(durable(whole, of, store, "whole"))
    asyncio.run(durable(interrupted(), of, store, "rest"))
    assert asyncio.run(durable(rest, of, store, "rest")).status is RunStatus.COMPLETED
    assert [sampling.seed for _, sampling in rest.asked] == [sampling.seed for _, sampling in whole.asked[2:]]

    for name, limit in (("tokens", {"most_tokens": 1}), ("cost", {"most_cost_usd": 1e-9})):
        asyncio.run(durable(interrupted(), of, store, name))
        model = ScriptedModel("c", price=Price(1, 1))
        run = asyncio.run(durable(model, of, store, name, **limit))
        assert (run.cause, model.asked) == ("budget", [])


def test_parallel_nodes_and_nodes_of_a_sub_workflow_are_steps_too(tmp_path: Path) -> None:
    inner = sub_workflow("Inner", workflow(TWO), OPERATORS)
    body = "xs = await asyncio.gather(*[self.inner(problem=problem) for _ in range(2)])\nreturn xs[0]['response']"
    outer = checked_workflow(samples.workflow("inner=Inner", body), OPERATORS.with_(inner))

    async def act(model: ScriptedModel) -> WorkflowRun:
        settings = RunSettings(retries=0, temperature=1.0)
        async with (
            WorkflowRunner(model, operators=OPERATORS.with_(inner), settings=settings) as runner,
            DurableRuns(runner, tmp_path / "runs.sqlite") as runs,
        ):
            return await runs.run(outer, "p", uid="r")

    def fails_at_the_second(*_: Any) -> str | Exception:
        return EngineError("down") if len(model.asked) > 2 else "x"

    model = ScriptedModel(fails_at_the_second)
    assert asyncio.run(act(model)).cause == "infrastructure"
    done = len(model.asked) - 1
    again = ScriptedModel("x")
    assert asyncio.run(act(again)).answer == "xx" and len(again.asked) <= 4 - done + 1


def test_a_name_belongs_to_one_workflow_and_problem(tmp_path: Path) -> None:
    asyncio.run(durable(ScriptedModel("x"), workflow(TWO), tmp_path / "runs.sqlite"))
    with pytest.raises(RunError, match="another plan or input"):
        asyncio.run(durable(ScriptedModel("x"), workflow(LOOP), tmp_path / "runs.sqlite"))


def test_a_failure_of_the_workflow_itself_is_its_result(tmp_path: Path) -> None:
    failing = workflow("x = [problem][3]\nreturn x + (await self.custom(input=x))['response']")
    for _ in range(2):
        ran = asyncio.run(durable(ScriptedModel("x"), failing, tmp_path / "runs.sqlite"))
        assert (ran.status, ran.cause) == (RunStatus.FAILED, "workflow") and "no item 3" in ran.error


def test_an_own_operator_that_returns_numbers_is_kept_as_it_was(tmp_path: Path) -> None:
    @operator(calls=0)
    async def count_words(context: OperatorContext, text: str) -> str:
        """Counts words."""
        return str(len(text.split()))

    operators = OPERATORS.with_(count_words)
    body = "a = await self.count(text=problem)\nb = await self.custom(input=a['response'])\nreturn a['response']"
    of = checked_workflow(samples.workflow("count=CountWords custom=Custom", body), operators)

    async def act(model: ScriptedModel) -> WorkflowRun:
        async with (
            WorkflowRunner(model, operators=operators, settings=RunSettings(retries=0)) as runner,
            DurableRuns(runner, tmp_path / "runs.sqlite") as runs,
        ):
            return await runs.run(of, "three short words", uid="r")

    asyncio.run(act(ScriptedModel(EngineError("down"))))
    ran = asyncio.run(act(ScriptedModel("x")))
    assert ran.answer == "3" and [node.replayed for node in ran.nodes] == [True, False]
