"""Events of a run are followed over HTTP from a cursor, across connections, until the run ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.served import KEY, Opened, Served, error

from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.plans import AgentExecutor, RunStatus
from midstream.plans.journal import Event

PLAN = {
    "nodes": [
        {"id": "text", "handler": "value", "args": {"value": "one\nline \ud800 \u2028"}},
        {"id": "sure", "handler": "ask", "args": {"prompt": "Sure?"}, "after": ["text"]},
    ]
}


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A store with the run `r`, which waits for an answer."""

    async def main() -> None:
        async with AgentExecutor(tmp_path / "plans.sqlite") as executor:
            assert (await executor.run(PLAN, uid="r")).status is RunStatus.WAITING

    asyncio.run(main())
    return tmp_path / "plans.sqlite"


@pytest.fixture
def served(plans: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path, keyed: dict[str, Any]) -> Iterator[Served]:
    engine, executor = ScriptedEngine(tiny_tokenizer, "Hello."), AgentExecutor(plans)
    served = Served(engine, tiny_tokenizer, tmp_path / "g.sqlite", executor=executor, limits={"ping_s": 0.1}, **keyed)
    served.client.headers["Authorization"] = f"Bearer {KEY}"
    yield served
    served.stop()
    asyncio.run(executor.close())


def finish(plans: Path) -> None:
    async def main() -> None:
        async with AgentExecutor(plans) as executor:
            await executor.answer("r", (await executor.questions("r"))[0].id, True)
            assert (await executor.resume("r")).status is RunStatus.SUCCEEDED

    asyncio.run(main())


def journal(plans: Path) -> list[dict[str, Any]]:
    """The events as the executor gives them."""

    def described(event: Event) -> dict[str, Any]:
        return {"seq": event.seq, "at": event.at, "kind": event.kind, "path": event.path, "data": event.data}

    async def main() -> list[dict[str, Any]]:
        async with AgentExecutor(plans) as executor:
            return [described(event) async for event in executor.events("r")]

    return asyncio.run(main())


def read(response: httpx.Response, count: int | None = None) -> Iterator[dict[str, Any]]:
    """Parse a stream: its fields by name, with `data` as JSON; `count` events, or to its end."""
    fields: dict[str, Any] = {}
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = json.loads(value) if name == "data" else value
        elif "data" in fields:
            yield fields
            fields = {}
            if count is not None and (count := count - 1) == 0:
                return


def test_events_are_followed_across_connections_until_the_run_ends(served: Served, plans: Path) -> None:
    known = journal(plans)
    with served.client.stream("GET", "/plans/r/events") as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        first = list(read(response, len(known)))
    assert [one["data"] for one in first] == known and [int(one["id"]) for one in first] == list(
        range(1, len(known) + 1)
    )
    last = first[-1]["id"]
    with served.client.stream("GET", "/plans/r/events?after=2", headers={"Last-Event-ID": last}) as response:
        finish(plans)  # in another process, as far as the gateway can tell
        *rest, end = read(response)
    assert [one["data"] for one in rest] == journal(plans)[len(known) :] and rest
    assert (end["event"], end["data"]) == ("end", {"run": "r", "status": "succeeded"})
    again = served.client.get("/plans/r/events", headers={"Last-Event-ID": rest[-1]["id"]})
    assert (again.status_code, again.content) == (204, b"")
    whole = served.client.get("/plans/r/events", params={"after": 3}).text
    assert f"id: {rest[-1]['id']}\n" in whole and "id: 3\n" not in whole and "id: 4\n" in whole


def test_a_silent_run_gets_pings_and_the_stream_ends_with_the_gateway(served: Served) -> None:
    with served.client.stream("GET", "/plans/r/events", params={"after": 10**6}) as response:
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == ["retry: 1000", "", ": ping", ""]
        served.loop.call_soon_threadsafe(served.gateway.admission.close, "stopping")
        assert not [line for line in lines if line and line != ": ping"]


@pytest.mark.parametrize(
    ("path", "headers", "status", "message"),
    [
        ("/plans/none/events", {}, 404, "no run 'none'"),
        ("/plans/r/events?after=x", {}, 400, "'after' takes the number of an event"),
        ("/plans/r/events?after=-1", {}, 400, "'after' takes the number of an event"),
        (f"/plans/r/events?after=1{'0' * 30}", {}, 400, "'after' takes the number of an event"),
        ("/plans/r/events", {"Last-Event-ID": "x"}, 400, "'Last-Event-ID' takes the number of an event"),
        ("/plans/%20/events", {}, 400, "'run' takes"),
    ],
)
def test_what_does_not_exist_or_is_no_cursor_is_refused(
    served: Served, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    found = error(served.client.get(path, headers=headers))
    assert found[0] == status and message in found[2]


def test_an_agent_may_not_follow_a_run(served: Served) -> None:
    mine = Opened(served, served.post("/init_trajectory", {}).json())
    for token in (mine.token, mine.owner_token):
        assert error(served.client.get("/plans/r/events", headers={"Authorization": f"Bearer {token}"}))[0] == 403
    assert error(served.client.get("/plans/r/events", headers={"Authorization": ""}))[0] == 401
