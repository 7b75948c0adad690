"""`PlanAndExecute` and `AutoGPT` from Python, without a config."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import midstream as ms
from midstream.core.errors import ConfigError, EngineError, RunError
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import RoleEngine
from midstream.store import Database

sold: list[str] = []


@ms.tool
def sell(what: str) -> str:
    """Sell something."""
    sold.append(what)
    return f"sold {what}"


PLAN = json.dumps({"steps": [{"id": "a", "tool": "sell", "args": {"what": "tea"}}]})


def says(request: Request) -> str:
    if request.role == "planner":
        return PLAN
    return "tea is sold" if request.role == "generator" else json.dumps({"tool": "sell", "args": {"what": "tea"}})


@pytest.fixture
def engine(tiny_tokenizer: ChatTokenizer) -> RoleEngine:
    sold.clear()
    return RoleEngine(ScriptedEngine(tiny_tokenizer, says), tiny_tokenizer, True)


def test_a_plan_is_made_and_run_once_for_each_uid(engine: RoleEngine, tmp_path: Path) -> None:
    store = tmp_path / "agents.sqlite"
    agent = ms.PlanAndExecute(engine, tools=[sell, "calculator"], store=store, keep_plans=True)
    made = agent.run("Sell tea.", uid="first")
    assert (made.answer, made.metadata["outcome"], sold) == ("tea is sold", "answered", ["tea"])
    assert agent.run("Sell tea.", uid="first") == made and sold == ["tea"]
    with pytest.raises(RunError, match="has another goal"):
        agent.run("Sell coffee.", uid="first")
    asyncio.run(_one_plan(store))


async def _one_plan(store: Path) -> None:
    from midstream.plans import views

    async with ms.AgentExecutor(store) as executor:
        (row,) = executor.database.read(views.runs)
        assert (await executor.status(row.uid)).run.status == "succeeded" and row.uid.startswith("first-")


def test_a_failed_attempt_leaves_no_plan_behind(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    def fails(request: Request) -> str | Exception:
        steps = [{"id": "a", "task": "think"}]
        return json.dumps({"steps": steps}) if request.role == "planner" else EngineError("it is gone")

    engine = RoleEngine(ScriptedEngine(tiny_tokenizer, fails), tiny_tokenizer, True)
    made = ms.PlanAndExecute(engine, store=tmp_path / "agents.sqlite").run("Think.", uid="x")
    assert (made.status, made.error) == ("failed", "it is gone")
    with Database(tmp_path / "agents.sqlite") as database:
        tables = ("plan_runs", "plan_nodes", "attempt_actions")
        counts = [
            database.read(lambda c, name=name: c.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar())
            for name in tables
        ]
    assert counts == [0, 0, 0]


def test_an_autonomous_agent_ends_when_its_tool_succeeds(engine: RoleEngine) -> None:
    made = ms.AutoGPT(engine, tools=[sell], by_rule=["critic"], stop_after=["sell"]).run("Sell tea.")
    assert (made.answer, made.metadata["outcome"], made.turns) == ("sold tea", "stopped", 1)


def test_several_goals_at_once(engine: RoleEngine) -> None:
    agent = ms.PlanAndExecute(engine, tools=[sell])
    made = asyncio.run(agent.run_all({"x": "Sell tea.", "y": "Sell it again."}))
    assert [one.uid for one in made] == ["x", "y"] and sold == ["tea", "tea"]


def test_it_turns_into_a_training_config() -> None:
    agent = ms.AutoGPT("tiny", tools=[sell, "calculator"], by_rule=["critic"], max_turns=4, max_tokens=32)
    config = ms.load_config(agent.config(name="sales", tasks={"sources": [{"type": "direct"}]}, optimizer={"lr": 2e-5}))
    assert config.flow.name == "autonomous" and config.flow.tools == ("calculator", f"{__name__}:sell")
    assert config.flow.settings == {"max_turns": 4} and config.flow.roles["critic"].engine == "rules"
    assert (config.policy.model, config.optimizer.lr, config.rollout.sampling.max_tokens) == ("tiny", 2e-5, 32)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"max_turn": 3}, "max_turns"),
        ({"tools": ["calculater"]}, "calculator"),
        ({"by_rule": ["policy"]}, "has no rule for that role"),
        ({"model": RoleEngine(None, None, False), "base_url": "http://x"}, "both an engine and a base_url"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_said_at_once(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ms.AutoGPT(**arguments)


def test_a_tool_inside_a_function_cannot_be_named_by_a_config() -> None:
    @ms.tool
    def inner(x: str) -> str:
        """Nothing."""
        return x

    with pytest.raises(ConfigError, match="is not a global of its module"):
        ms.AutoGPT("tiny", tools=[inner]).config()


def test_an_attempt_that_ran_out_of_time_leaves_no_plan_behind(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    @ms.tool(timeout_s=60)
    async def wait() -> str:
        """Wait for nothing."""
        await asyncio.Event().wait()
        return ""

    plan = json.dumps({"steps": [{"id": "a", "tool": "wait"}]})
    engine = RoleEngine(ScriptedEngine(tiny_tokenizer, plan), tiny_tokenizer, True)
    made = ms.PlanAndExecute(engine, tools=[wait], store=tmp_path / "agents.sqlite", timeout_s=1.0).run("Wait.")
    assert made.status == "timed_out"
    with Database(tmp_path / "agents.sqlite") as database:
        assert database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM plan_runs").scalar()) == 0
