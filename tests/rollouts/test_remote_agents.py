"""Flows that run against a remote gateway over an unreliable network."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import fields
from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import HELLO, Served

from midstream.agents.config import FlowConfig
from midstream.core.errors import EngineError, UserError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Status, Step, Task, Trajectory
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions import active
from midstream.record.recorder import Call, RoleEngine
from midstream.record.replies import ChatStep
from midstream.rollouts import AgentFlowManager, AgentFlowWorker, groups_of
from midstream.rollouts import client as gateway_client
from midstream.rollouts.client import GatewayClient
from midstream.rollouts.config import SamplingConfig
from midstream.rollouts.remote import RemoteEngine, RemoteRecorder, RemoteSink


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "FIRST_WAIT_S", 0.01)


class Losing(httpx.AsyncBaseTransport):
    """Delivers each request to the gateway and drops the first `lost` responses to it."""

    def __init__(self, lost: int) -> None:
        self._inner, self._lost = httpx.AsyncHTTPTransport(), lost
        self.sent: dict[tuple[str, bytes], int] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        same = (str(request.url), await request.aread())
        self.sent[same] = self.sent.get(same, 0) + 1
        response = await self._inner.handle_async_request(request)
        await response.aread()
        if self.sent[same] <= self._lost:
            raise httpx.ReadError("the connection was lost", request=request)
        return response


class Refusing(httpx.AsyncBaseTransport):
    """Answers 429 a number of times before it delivers a request."""

    def __init__(self, times: int) -> None:
        self._inner, self.left = httpx.AsyncHTTPTransport(), times

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.left:
            self.left -= 1
            return httpx.Response(429, json={"error": {"message": "later"}}, headers={"Retry-After": "0"})
        return await self._inner.handle_async_request(request)


def over(transport: httpx.AsyncBaseTransport, served: Served) -> GatewayClient:
    client = GatewayClient(served.url)
    client._http = httpx.AsyncClient(base_url=client.url, transport=transport, timeout=20)
    return client


def roll_out(client: GatewayClient) -> list[Trajectory]:
    async def go() -> list[Trajectory]:
        async with client:
            worker = AgentFlowWorker(
                FlowConfig(name="single_step_single_turn_agent"),
                {"policy": RoleEngine(RemoteEngine(), None, True)},
                sampling=SamplingConfig(max_tokens=20),
                sink=RemoteSink(client, group_size=2, model="tiny"),
            )
            attempts = groups_of([Task(id="t", prompt="What is 1 + 1?")], 2, prefix="r", seed=1)
            return await AgentFlowManager(worker).run(attempts)

    return asyncio.run(go())


def test_lost_answers_are_repeated_and_counted_once(start: Start) -> None:
    # A repeated call would give a different answer.
    said = iter(f"It is {number}." for number in range(100))
    served = start(lambda request: next(said))
    transport = Losing(lost=2)
    made = roll_out(over(transport, served))
    assert set(transport.sent.values()) == {3}
    assert [trajectory.status for trajectory in made] == [Status.COMPLETED] * 2
    for trajectory in made:
        (own,), (kept,) = trajectory.steps, served.steps(trajectory.uid)
        assert (own.prompt_ids, own.response_ids, own.text) == (kept.prompt_ids, kept.response_ids, kept.text)
        assert own.rollout_log_probs == kept.rollout_log_probs
        assert served.trajectory(trajectory.uid).status is Status.COMPLETED
    assert {t.steps[0].text for t in made} == {"It is 0.", "It is 1."}
    assert served.store.trajectories.count() == 2 and served.store.groups.counts()["ready"] == 1


def test_a_failed_attempt_sends_no_heartbeats(start: Start) -> None:
    async def raises(trajectory: Trajectory) -> Trajectory:
        raise UserError("the reward is wrong", "mend it")

    async def go() -> int:
        async with GatewayClient(start().url) as client:
            sink = RemoteSink(client, group_size=1, model="tiny")
            worker = AgentFlowWorker(
                FlowConfig(name="single_step_single_turn_agent"),
                {"policy": RoleEngine(RemoteEngine(), None, True)},
                sampling=SamplingConfig(max_tokens=5),
                sink=sink,
                score=raises,
            )
            (attempt,) = groups_of([Task(id="t", prompt="?")], 1, prefix="r", seed=1)
            with pytest.raises(UserError, match="the reward is wrong"):
                await worker.run(attempt)
            return len(sink._open)

    assert asyncio.run(go()) == 0


def test_every_sampling_setting_reaches_the_gateway(start: Start) -> None:
    served = start()
    off = SamplingParams(
        max_tokens=9,
        temperature=0.7,
        top_p=0.9,
        top_k=30,
        min_p=0.05,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.3,
        stop=("!",),
        seed=5,
    )
    assert all(getattr(off, field.name) != field.default for field in fields(SamplingParams))
    heard: list[SamplingParams] = []
    generate = served.engine.generate
    served.engine.generate = lambda request: heard.append(request.sampling) or generate(request)

    async def go() -> Step:
        async with GatewayClient(served.url) as client:
            opened = await client.init_trajectory(trajectory_uid="t", prompt_uid="p")
            recorder = RemoteRecorder("t", "p", seed=1, client=client, token=opened["owner_token"])
            return await recorder.chat(RoleEngine(RemoteEngine(), None, True), HELLO, off)

    step = asyncio.run(go())
    assert heard == [off]
    assert step.metadata["sampling"] == served.steps("t")[0].metadata["sampling"] == off.alterations()


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def ask_remotely(url: str, **asked: Any) -> ChatStep:
    async def go() -> ChatStep:
        async with GatewayClient(url) as client:
            opened = await client.init_trajectory(trajectory_uid="t", prompt_uid="p")
            recorder = RemoteRecorder("t", "p", seed=1, client=client, token=opened["owner_token"])
            sampling = SamplingParams(max_tokens=40)
            return await recorder.chat(RoleEngine(RemoteEngine(), None, True), HELLO, sampling, **asked)

    return asyncio.run(go())


def test_the_gateway_declares_tools_and_parses_their_calls(start: Start) -> None:
    served = start('I look.\n<tool_call>\n{"name": "look", "arguments": {"far": true}}\n</tool_call>')
    step = ask_remotely(served.url, tools=[LOOK], tool_choice="look")
    (call,) = step.tool_calls
    assert (call.name, call.values, step.content.strip()) == ("look", {"far": True}, "I look.")
    (recorded,) = served.steps("t")
    assert (recorded.tools, recorded.text) == ((LOOK,), step.text)
    # The canned reply is no sample under the constraint, and says so on both sides.
    assert step.metadata["sampling"] == recorded.metadata["sampling"] == {"constraint": "lark"}


@pytest.mark.parametrize(
    ("wanted", "kind"), [(Constraint.one_of("yes", "no"), "lark"), ({"type": "json_object"}, "json_schema")]
)
def test_a_remote_step_keeps_the_constraint_that_it_was_sampled_under(
    make_policy: Any, serve: Any, wanted: Any, kind: str
) -> None:
    served = serve(make_policy().engine)
    step = ask_remotely(served.url, response_format=wanted)
    (recorded,) = served.steps("t")
    assert step.constraint is not None and step.constraint.kind == kind
    assert (step.constraint, step.rollout_log_probs) == (recorded.constraint, recorded.rollout_log_probs)
    assert "sampling" not in step.metadata


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"tool_choice": "boat", "tools": [LOOK]}, "names the tool 'boat'"),
        ({"tool_choice": "required"}, "the request has no tools"),
        ({"constraint": {"kind": "regex", "grammar": "a"}, "tools": [LOOK]}, "leave out tools and response_format"),
        ({"constraint": {"kind": "yaml", "grammar": "a"}}, "constraint"),
        ({"response_format": {"type": "yaml"}}, "json_schema"),
    ],
)
def test_a_demand_that_cannot_be_met_is_refused_by_the_gateway(start: Start, body: Any, problem: str) -> None:
    served = start()
    asked = {"trajectory_uid": "t", "prompt_uid": "p", "messages": HELLO, **body}
    answer = served.post("/generate", asked)
    assert answer.status_code == 400 and problem in answer.json()["error"]["message"]
    untold = served.post("/generate", {"prompt_ids": [5], "response_format": {"type": "json_object"}})
    assert "needs a trajectory_uid" in untold.json()["error"]["message"]


def test_a_trajectory_ended_by_its_agent_is_recognised_by_error_code(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = start()
    monkeypatch.setattr(active, "trajectory_ended", lambda *_: ApiError(409, "zu Ende", code="trajectory_ended"))
    client = GatewayClient(served.url)
    records = RemoteSink(client, group_size=1, model="tiny")
    (attempt,) = groups_of([Task(id="t", prompt="?")], 1, prefix="r", seed=1)

    async def go(status: Status) -> None:
        async with client:
            await records.begin(attempt)
            served.post(f"/complete_trajectory/{attempt.uid}", {"answer": "mine"})
            await records.finish(Trajectory(uid=attempt.uid, prompt_uid="", task=attempt.task, status=status), attempt)

    asyncio.run(go(Status.COMPLETED))
    assert served.trajectory(attempt.uid).answer == "mine"


def test_other_refusals_are_errors_whatever_their_message(start: Start) -> None:
    served = start()

    class Wording(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path.startswith("/complete"):
                told = {"message": "the day has ended; context_length_exceeded", "code": "forbidden"}
                return httpx.Response(403, json={"error": told})
            opened = {"owner_token": "mo-x", "token": "ms-x", "base_url": ""}
            return httpx.Response(200, json=opened)

    records = RemoteSink(over(Wording(), served), group_size=1, model="tiny")
    (attempt,) = groups_of([Task(id="t", prompt="?")], 1, prefix="r", seed=1)

    async def go() -> None:
        await records.begin(attempt)
        await records.finish(Trajectory(uid=attempt.uid, prompt_uid="", task=attempt.task), attempt)

    with pytest.raises(EngineError, match="the day has ended"):
        asyncio.run(go())


def test_a_call_survives_a_restart_of_the_gateway(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    served = start("Hello.", port=port)

    async def go() -> dict[str, Any]:
        async with GatewayClient(served.url) as client:
            await client.init_trajectory(trajectory_uid="t", prompt_uid="p")
            await asyncio.to_thread(served.stop)
            asked = asyncio.create_task(client.generate("t/0", trajectory_uid="t", messages=HELLO))
            await asyncio.sleep(0.05)
            assert not asked.done()
            await asyncio.to_thread(start, "Hello again.", port=port)
            return await asked

    gateway_client.FIRST_WAIT_S = 0.2
    assert asyncio.run(go())["response_text"] == "Hello again."


def test_a_busy_gateway_is_retried_longer_than_a_failing_one(start: Start) -> None:
    transport = Refusing(times=4 * gateway_client.RETRIES)
    client = over(transport, start())
    opened = asyncio.run(client.init_trajectory(trajectory_uid="t"))
    assert opened["trajectory_uid"] == "t" and transport.left == 0


def test_an_unreachable_gateway_fails_the_attempt(start: Start) -> None:
    transport = Losing(lost=100)
    made = roll_out(over(transport, served := start()))
    told = f"the gateway {served.url} did not answer after {gateway_client.RETRIES + 1} tries; last: ReadError"
    assert [trajectory.status for trajectory in made] == [Status.FAILED] * 2
    assert all(told in trajectory.error for trajectory in made)


def test_a_refused_call_is_not_retried(start: Start) -> None:
    transport = Losing(lost=0)
    client = over(transport, start())
    with pytest.raises(EngineError, match=r"refused: no trajectory 'nobody'"):
        asyncio.run(client.trajectory("nobody"))
    assert list(transport.sent.values()) == [1]


def test_an_abandoned_call_is_not_the_answer_to_the_next_one(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_client, "FIRST_WAIT_S", 20.0)
    served = start(["first", "second"])

    def call(text: str) -> Call:
        return Call(messages=({"role": "user", "content": text},), sampling=SamplingParams(max_tokens=20))

    async def go() -> str:
        async with GatewayClient(served.url) as plain, over(Losing(lost=1), served) as losing:
            await plain.init_trajectory(trajectory_uid="t", prompt_uid="p")
            recorder, role_engine = (
                RemoteRecorder("t", "p", seed=1, client=losing),
                RoleEngine(RemoteEngine(), None, True),
            )
            with pytest.raises(TimeoutError):  # it is recorded, its answer is lost, and the caller has stopped waiting
                await asyncio.wait_for(recorder.call(role_engine, call("One?")), 10)
            recorder._client = plain  # pyright: ignore[reportPrivateUsage]
            step, _ = await recorder.call(role_engine, call("Two?"))
            return step.text

    assert asyncio.run(go()) == "second"
