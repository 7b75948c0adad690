"""Questions of plans are listed and answered through the gateway, with the validation of the plans themselves."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.served import KEY, Opened, Served, error

from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.http.questions_page import answer_of, questions_page
from midstream.plans import AgentExecutor, OpenQuestion, RunStatus

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


def form(served: Served, **fields: str) -> httpx.Response:
    return served.client.post("/plans", data=fields, follow_redirects=False)


def test_the_page_shows_each_question_with_a_field_for_each_part_of_its_answer(served: Served) -> None:
    page = served.client.get("/plans")
    assert page.status_code == 200 and "script" not in page.text
    assert page.text.count("<form") == 2 and page.text.count('<input name="answer.seats"') == 2
    assert "How many?" in page.text and "run <code>two</code>" in page.text


def test_a_form_answers_a_question_or_says_why_not(served: Served) -> None:
    (question,) = served.client.get("/plans/questions", params={"run": "two"}).json()["questions"]
    about = {"run": "two", "question": question["question"]}
    for answer, why in (({}, "seats"), ({"answer.seats": "0"}, "less than the minimum of 1")):
        refused = form(served, **about, **answer)
        assert refused.status_code == 400 and why in refused.text.partition('class="problem"')[2].partition("</p>")[0]
    assert '<input name="answer.seats" value="0"' in refused.text
    answered = form(served, **about, **{"answer.seats": "2"})
    assert answered.status_code == 303
    shown = served.client.get(answered.headers["location"].replace("plans", "/plans"))
    assert "Answered a question of run <code>two</code>." in shown.text and shown.text.count("<form") == 1
    again = form(served, **about, **{"answer.seats": "3"})
    assert again.status_code == 404 and "has no open question" in again.text


def test_a_page_of_another_site_cannot_answer_and_an_agent_does_not_see_the_page(served: Served) -> None:
    (question,) = served.client.get("/plans/questions", params={"run": "one"}).json()["questions"]
    about = {"run": "one", "question": question["question"], "answer.seats": "1"}
    basic = {"Authorization": f"Basic {base64.b64encode(f':{KEY}'.encode()).decode()}"}
    for origin in ("https://example.org", "null", "", "http://["):
        strange = served.client.post("/plans", data=about, headers=basic | {"Origin": origin})
        assert error(strange)[0] == 403
    asked = served.client.get("/plans", headers={"Authorization": ""})
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic")
    token = Opened(served, served.post("/init_trajectory", {}).json()).token
    assert error(served.client.get("/plans", headers={"Authorization": f"Bearer {token}"}))[0] == 403
    own = served.client.post("/plans", data=about, headers=basic | {"Origin": str(served.client.base_url)})
    assert own.status_code in (200, 303)


def test_a_body_that_is_no_form_is_refused(served: Served) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert error(served.client.post("/plans", content=b"\xff=1", headers=kind))[0] == 400
    assert error(served.client.post("/plans", content=b"run", headers=kind))[0] == 400
    assert error(served.client.post("/plans", json={"run": "one"}))[0] == 415


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "fields", "answer"),
    [
        ({"type": "boolean"}, {"answer": "true"}, True),
        ({"enum": ["a", 1]}, {"answer": '"a"'}, "a"),
        (TEXT, {"answer": "12"}, "12"),
        ({"type": "number"}, {"answer": "1.5"}, 1.5),
        ({"type": "number"}, {"answer": "many"}, "many"),
        ({}, {"answer": "[1]"}, [1]),
        ({"properties": {"a": TEXT, "b": TEXT}, "required": ["a"]}, {"answer.a": "", "answer.b": ""}, {"a": ""}),
        ({"properties": {"a": {"type": "array"}}}, {"answer.a": "[1, 2]"}, {"a": [1, 2]}),
        ({"properties": {"a": TEXT}}, {"answer": '{"a": "x"}'}, {"a": "x"}),
        ({"properties": {"a": True}}, {"answer.a": "1"}, {"a": 1}),
    ],
)
def test_fields_become_the_answer_that_the_schema_asks_for(schema: Any, fields: dict[str, str], answer: Any) -> None:
    assert answer_of(fields, schema) == answer


def test_the_page_shows_a_part_that_may_be_anything_and_a_question_that_never_expires() -> None:
    asked = OpenQuestion("run", "id", "node", "What?", {"properties": {"a": True}}, 0.0, 1e18)
    page = questions_page([asked])
    assert '<textarea name="answer.a"' in page and "expires 9999-12-31" in page


def test_what_a_question_says_cannot_change_the_page() -> None:
    hostile = "</textarea><script>alert(1)</script>\ud800"
    schema = {"type": "object", "properties": {hostile: {"enum": [hostile]}}, "required": [hostile]}
    asked = [OpenQuestion("run", "id", hostile, hostile, one, 0.0, 1.0) for one in (schema, {"enum": [hostile]})]
    filled = {"run": "run", "question": "id", f"answer.{hostile}": hostile, "answer": hostile}
    assert "<script" not in questions_page(asked, answered=hostile, problem=hostile, filled=filled)
