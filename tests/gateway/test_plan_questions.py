"""Questions of plans are listed and answered through the gateway, with the validation of the plans themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.served import KEY, Opened, Served, error

from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.plans import AgentExecutor, RunStatus

SEATS = {"type": "object", "properties": {"seats": {"type": "integer", "minimum": 1}}, "required": ["seats"]}
PLAN = {"nodes": [{"id": "seats", "handler": "ask", "args": {"prompt": "How many?", "answer": SEATS}}]}


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A store with the runs `one` and `two`, which wait for an answer."""

    async def main() -> None:
        async with AgentExecutor(tmp_path / "plans.sqlite") as executor:
            for uid in ("one", "two"):
                assert (await executor.run(PLAN, uid=uid)).status is RunStatus.WAITING

    asyncio.run(main())
    return tmp_path / "plans.sqlite"


@pytest.fixture
def served(plans: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path, keyed: dict[str, Any]) -> Iterator[Served]:
    engine, executor = ScriptedEngine(tiny_tokenizer, "Hello."), AgentExecutor(plans)
    served = Served(engine, tiny_tokenizer, tmp_path / "g.sqlite", executor=executor, **keyed)
    served.client.headers["Authorization"] = f"Bearer {KEY}"
    yield served
    served.stop()
    asyncio.run(executor.close())


def test_open_questions_are_listed_and_answered_once(served: Served, plans: Path) -> None:
    listed = served.client.get("/plans/questions").json()["questions"]
    assert [(one["run"], one["node"], one["prompt"], one["schema"]) for one in listed] == [
        ("one", "seats", "How many?", SEATS),
        ("two", "seats", "How many?", SEATS),
    ]
    (question,) = served.client.get("/plans/questions", params={"run": "two"}).json()["questions"]
    path = f"/plans/two/questions/{question['question']}"
    status, code, message = error(served.post(path, {"answer": {"seats": 0}}))
    assert (status, code) == (400, "answer_refused") and "less than the minimum of 1" in message
    assert served.post(path, {"answer": {"seats": 2}}).status_code == 200
    assert error(served.post(path, {"answer": {"seats": 3}}))[0] == 404
    assert [one["run"] for one in served.client.get("/plans/questions").json()["questions"]] == ["one"]

    async def resume() -> Any:
        async with AgentExecutor(plans) as executor:
            return await executor.resume("two")

    assert asyncio.run(resume()).output == {"seats": {"seats": 2}}


def test_what_does_not_exist_is_404_and_what_json_cannot_hold_is_refused(served: Served) -> None:
    (question,) = served.client.get("/plans/questions", params={"run": "one"}).json()["questions"]
    for path in ("/plans/three/questions/x", f"/plans/two/questions/{question['question']}"):
        assert error(served.post(path, {"answer": 1}))[0] == 404
    assert served.client.get("/plans/questions", params={"run": "three"}).json() == {"questions": []}
    path = f"/plans/one/questions/{question['question']}"
    for body in (b'{"answer": NaN}', b'{"answer": "\\ud800"}', b"{}", b'{"answer": 1, "run": "two"}'):
        assert error(served.client.post(path, content=body, headers={"Content-Type": "application/json"}))[0] == 400
    assert len(served.client.get("/plans/questions").json()["questions"]) == 2


def test_an_agent_may_neither_see_nor_answer_questions(served: Served) -> None:
    mine = Opened(served, served.post("/init_trajectory", {}).json())
    (question,) = served.client.get("/plans/questions", params={"run": "one"}).json()["questions"]
    for token in (mine.token, mine.owner_token):
        named = {"Authorization": f"Bearer {token}"}
        assert error(served.client.get("/plans/questions", headers=named))[0] == 403
        path = f"/plans/one/questions/{question['question']}"
        assert error(served.post(path, {"answer": {"seats": 1}}, **named))[0] == 403
    assert error(served.client.get("/plans/questions", headers={"Authorization": ""}))[0] == 401


def test_a_gateway_without_plans_says_so(start) -> None:
    served = start()
    status, _, message = error(served.client.get("/plans/questions"))
    assert status == 404 and "set `plans` to their store" in message
