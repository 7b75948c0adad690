"""Attempts that go on inside their episode after their process died: by `kill -9`, and by an error nobody catches."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream.agents.base import FlowSession
from midstream.agents.resume import call_once, count_calls_with_keys
from midstream.core.environments import Outcome
from midstream.core.errors import EngineError
from midstream.core.failures import Failure, failure_of
from midstream.core.types import Message, Status, Task, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.record.action_log import SCHEMA, Action, ActionLog, load_actions
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.store import Store
from midstream.rollouts import Attempt
from midstream.tasks.environments import ENVIRONMENTS, register_environment
from midstream.tools import Toolbox, tool

ROOT = Path(__file__).parents[2]
KILLS = {"plan_and_execute": [4, 7], "autogpt": [5, 6], "coordinator": [7, 6], "peers": [4, 5]}
"""Flows, and the events to kill them at: the second one is a booking that may or may not be repeated."""


@pytest.fixture(scope="module")
def killed() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.rollouts.killed", json.dumps(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("flow", KILLS)
def test_a_killed_attempt_goes_on_with_the_same_tokens(killed: dict[str, Any], flow: str) -> None:
    whole, (told, _) = killed[flow]["whole"], killed[flow]["points"]
    assert told["status"] == "completed" and told["answer"] == whole["answer"] and told["outcome"] == whole["outcome"]
    assert (told["tokens"], told["prompts"], told["tools"]) == (whole["tokens"], whole["prompts"], whole["tools"])
    assert told["sampled"] == whole["sampled"] - told["resumed"]["steps"] < whole["sampled"]


@pytest.mark.parametrize("flow", KILLS)
def test_no_effect_that_must_not_be_repeated_happens_twice(killed: dict[str, Any], flow: str) -> None:
    told, in_doubt = killed[flow]["points"]
    for effects in (told["effects"], in_doubt["effects"]):
        assert [count for name, count in effects.items() if name.startswith("book/")] == [1]
    assert in_doubt["status"] == "failed" and "its outcome is not known" in in_doubt["error"]


class Died(BaseException):
    """Stands for the death of the process: nothing catches it."""


class Dying:
    """Replies, and dies at one call. The seed of the call stands for the sample."""

    def __init__(self, *replies: str, at: int | None = None) -> None:
        self.replies, self.at, self.asked = replies, at, 0

    def __call__(self, request: Request) -> str:
        said = sum(message["role"] == "assistant" for message in request.messages)
        if said == self.at:
            raise Died
        self.asked += 1
        return self.replies[said].replace("SEED", str((request.sampling.seed or 0) % 997))


Run = Callable[..., Trajectory]


@pytest.fixture
def run(make_worker: Any, tmp_path: Path) -> Iterator[Run]:
    """Run or resume the attempt `u` in a store of this test."""
    with Store(tmp_path / "store.sqlite", "normal") as store:

        def run(
            says: Dying, flow: str = "react", metadata: Mapping[str, Any] | None = None, **settings: Any
        ) -> Trajectory:
            settings.setdefault("tools", (f"{__name__}:ring", f"{__name__}:look"))
            how = {"store": store, "resume": True, "retry_failed": settings.pop("retry_failed", False)}
            worker = make_worker(says, flow, worker=how, **settings)
            task = Task(id="t", prompt="Ring.", metadata=metadata or {})
            made = asyncio.run(worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=3)))
            kept = store.trajectories.get("u")
            assert replace(kept, task=task) == made
            return made

        yield run


rung: list[str] = []
dies: list[str] = []


@tool
async def ring(where: str) -> str:
    """Ring a bell. Not idempotent."""
    rung.append(where)
    if where in dies:
        dies.remove(where)
        raise Died
    return f"rang at {where}"


@tool(idempotent=True)
async def look(where: str) -> str:
    """Look somewhere."""
    return await ring(where)


@pytest.fixture(autouse=True)
def _nothing_rang() -> None:
    rung.clear()
    dies.clear()


def act(name: str, **parameters: Any) -> str:
    return json.dumps({"action": name, **parameters})


def calls(*wheres: str, name: str = "ring") -> list[str]:
    return [act("call_api", tool=name, args={"where": where}) for where in wheres]


ANSWER = act("answer", answer="rang")


def test_recorded_calls_are_answered_and_the_rest_is_sampled(run: Run) -> None:
    replies = (*calls("a SEED", "b"), act("reasoning", thought="SEED"), ANSWER)
    with pytest.raises(Died):
        run(Dying(*replies, at=2))
    assert len(rung) == 2
    says = Dying(*replies)
    made = run(says)
    assert (says.asked, len(rung), len(made.steps)) == (2, 2, 4)
    assert made.metadata["resumed"] == {"steps": 2, "actions": 2}
    assert [call.result for call in made.tool_calls] == [f"rang at {where}" for where in rung]
    assert run(says) == made and says.asked == 2  # an attempt that ended is not made again


def test_a_role_with_an_adapter_of_its_own_is_resumed(run: Run, tiny_tokenizer: ChatTokenizer) -> None:
    def dying(at: int | None, adapter: str) -> tuple[Dying, dict[str, RoleEngine]]:
        says = Dying(*calls("a"), ANSWER, at=at)
        engine = ScriptedEngine(tiny_tokenizer, says)
        engine.adapter = "default"
        return says, {"policy": RoleEngine(engine, tiny_tokenizer, True, adapter)}

    says, own = dying(1, "own")
    with pytest.raises(Died):
        run(says, role_engines=own)
    says, own = dying(1, "own")
    with pytest.raises(Died):
        run(says, role_engines=own)
    assert says.asked == 0
    says, other = dying(None, "other")
    reason = run(says, role_engines=other).metadata["resumed"]["started_again"]
    assert reason == "call 0: the adapter 'own' answered it, and now 'other' would"


@pytest.mark.parametrize("retry", [True, False])
def test_a_failed_attempt_starts_again_where_failures_are_retried(
    make_worker: Any, attempt: Any, tmp_path: Path, retry: bool
) -> None:
    replies: list[str | Exception] = [EngineError("the server is down"), ANSWER]
    with Store(tmp_path / "store.sqlite") as store:
        settings = {"store": store, "resume": True, "retry_failed": retry}
        worker = make_worker(lambda request: replies.pop(0), "react", worker=settings)
        first, second = (asyncio.run(worker.run(attempt())) for _ in range(2))
        assert first.status is Status.FAILED and failure_of(first) is Failure.INFRASTRUCTURE
        assert (second.status is Status.COMPLETED, second == first) == (retry, not retry)
        assert store.trajectories.get("u").status is second.status


def test_another_prompt_starts_the_attempt_again_and_says_so(run: Run) -> None:
    with pytest.raises(Died):
        run(Dying(*calls("a", "b"), ANSWER, at=2))
    says = Dying(*calls("a", "b"), ANSWER)
    made = run(says, settings={"max_actions": 5})
    assert made.metadata["resumed"] == {"started_again": "call 0: its messages differ"}
    assert (says.asked, rung) == (3, ["a", "b", "a", "b"])


def test_an_attempt_at_another_task_under_its_uid_begins_anew(run: Run) -> None:
    with pytest.raises(Died):
        run(Dying(*calls("a"), ANSWER, at=1))
    assert "resumed" not in run(Dying(*calls("a"), ANSWER), metadata={"other": 1}).metadata
    assert rung == ["a", "a"]


@pytest.mark.parametrize(("in_doubt", "ok", "times"), [("report", False, 1), ("repeat", True, 2), ("fail", None, 1)])
def test_a_call_in_doubt(run: Run, in_doubt: str, ok: bool | None, times: int) -> None:
    dies.append("a")
    with pytest.raises(Died):
        run(Dying(*calls("a"), ANSWER))
    made = run(Dying(*calls("a"), ANSWER), tool_use={"in_doubt": in_doubt})
    assert len(rung) == times
    if ok is None:
        assert made.status is Status.FAILED and made.metadata["failure"] == "infrastructure"
        again = run(Dying(*calls("a"), ANSWER), tool_use={"in_doubt": in_doubt}, retry_failed=True)
        assert again == made and len(rung) == 1  # the outcome of the first call is still not known
        return
    assert (made.status, made.tool_calls[0].ok) == (Status.COMPLETED, ok)
    assert ok or made.tool_calls[0].error_kind == "in_doubt"
    assert ok or "whether it had its effect is not known" in made.steps[1].messages[-1]["content"]


def test_an_idempotent_call_is_made_again(run: Run) -> None:
    dies.append("a")
    with pytest.raises(Died):
        run(Dying(*calls("a", name="look"), ANSWER))
    made = run(Dying(*calls("a", name="look"), ANSWER))
    assert made.tool_calls[0].ok and rung == ["a", "a"]


def test_the_variables_of_python_are_rebuilt(run: Run) -> None:
    codes = [act("call_api", tool="python", args={"code": code}) for code in ("x = 20", "x += 1\nx * 2")]
    sandbox = {"tools": ("python",), "tool_settings": {"python": {"sandbox": {"backend": "interpreter"}}}}
    with pytest.raises(Died):
        run(Dying(*codes, ANSWER, at=1), **sandbox)
    made = run(Dying(*codes, ANSWER), **sandbox)
    assert made.tool_calls[1].result == "42" and made.metadata["resumed"]["actions"] == 1


WRONG = act("call_api", tool="ring", args={"were": "a"})


@pytest.mark.parametrize(
    ("replies", "settings", "refused"),
    [
        (calls("a", "b", "c"), {"max_tool_calls": 2}, "over_budget"),
        (calls("a", "b", "c"), {"tool_use": {"budgets": {"ring": {"calls": 2}}}}, "over_budget"),
        ([WRONG, WRONG, *calls("c")], {"max_tool_calls": 1, "tool_use": {"max_invalid": 1}}, "over_budget"),
        (calls("a", "b", "c"), {}, ""),
    ],
)
@pytest.mark.parametrize("at", [None, 1, 2])
def test_calls_before_the_death_count_against_the_budget(
    run: Run, replies: list[str], settings: dict[str, Any], refused: str, at: int | None
) -> None:
    if at is not None:
        with pytest.raises(Died):
            run(Dying(*replies, ANSWER, at=at), **settings)
    made = run(Dying(*replies, ANSWER), **settings)
    assert made.tool_calls[2].error_kind == refused and made.answer == "rang"


@pytest.mark.parametrize("key", ["", "a step of a plan"])
def test_a_call_is_counted_once_however_it_is_found_again(tmp_path: Path, key: str) -> None:
    async def calls_left(known: Sequence[Action]) -> tuple[int | None, list[Action]]:
        log = ActionLog(store.database, "u", known)
        recorder = Recorder("u", "p", seed=0)
        session = FlowSession(
            task=Task(id="t", prompt="q"), recorder=recorder, role_engines={}, tools=toolbox.session(), sampling={},
            actions=log,
        )  # fmt: skip
        await count_calls_with_keys(session)
        await call_once(session, "ring", {"where": "a"}, 0, key, lambda: session.tools.call("ring", {"where": "a"}))
        return session.tools.remaining, store.database.read(lambda connection: load_actions(connection, "u"))

    toolbox = Toolbox([ring], max_calls=3)
    with Store(tmp_path / "store.sqlite") as store:
        store.database.require(SCHEMA)
        left, known = asyncio.run(calls_left(()))
        assert (left, asyncio.run(calls_left(known))[0], rung) == (2, 2, ["a"])


class Corridor:
    """Walk to position 3. Remembers every step that was taken, over all episodes."""

    steps: list[str] = []

    def __init__(self, resume: str) -> None:
        self.resume, self.position = resume, 0

    async def reset(self) -> list[Message]:
        self.position = 0
        return [{"role": "user", "content": "at 0"}]

    async def act(self, action: str) -> Outcome:
        self.position += 1 if action == "on" else 0
        self.steps.append(f"{action} to {self.position}")
        return Outcome(
            observation=f"at {self.position}", reward=1.0, done=self.position == 3, info={"at": self.position}
        )

    async def snapshot(self) -> Any:
        return {"position": self.position}

    async def restore(self, state: Any) -> None:
        self.position = state["position"]

    async def close(self) -> None: ...


class CorridorAdapter:
    def tasks(self, env: str, settings: Mapping[str, Any], seed: int) -> Any: ...

    def environment(self, env: str, settings: Mapping[str, Any], seed: int) -> Corridor:
        return Corridor(env)


@pytest.mark.parametrize(
    ("resume", "steps", "said"),
    [
        ("snapshot", ["on to 1", "on to 2", "on to 3"], {"steps": 2, "actions": 3}),
        ("replay", ["on to 1", "on to 2", "on to 1", "on to 2", "on to 3"], {"steps": 2, "actions": 0}),
        (
            "none",
            ["on to 1", "on to 2", "on to 1", "on to 2", "on to 3"],
            {"started_again": "its environment cannot be resumed"},
        ),
    ],
)
def test_an_environment_declares_how_its_episode_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, resume: str, steps: list[str], said: Mapping[str, Any]
) -> None:
    monkeypatch.setattr(Corridor, "steps", [])
    monkeypatch.delitem(ENVIRONMENTS, "corridor", raising=False)
    register_environment("corridor", CorridorAdapter())
    named = {"environment": {"type": "corridor", "env": resume, "settings": {}, "seed": 1}}
    with pytest.raises(Died):
        run(Dying("on", "on", "on", at=2), "environment_agent", metadata=named, tools=())
    says = Dying("on", "on", "on")
    made = run(says, "environment_agent", metadata=named, tools=())
    assert Corridor.steps == steps and made.metadata["resumed"] == said
    assert made.metadata["environment"] == {"rewards": [1.0, 1.0, 1.0], "done": True, "at": 3}
    assert says.asked == (3 if resume == "none" else 1)
