"""A gateway on loopback with a scripted engine and a store on disk."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import BaseModel
from tests.waiting import LIMIT_S

from midstream.core.types import Step, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.config import GatewayConfig
from midstream.gateway.limits.tokens import TokenSigner
from midstream.gateway.server import serving
from midstream.gateway.service import Gateway
from midstream.plans import AgentExecutor
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store

SECRET = b"of the tests, long enough"
KEY = "a key of the tests"
HELLO = [{"role": "user", "content": "Hello?"}]
TWO_CALLS = (
    'Both.<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "calculator", "arguments": {"expression": "2+2"}}\n</tool_call>'
)


class Verdict(BaseModel):
    """An answer format that both clients parse."""

    right: bool
    grade: Literal["good", "bad"]


class HeldEngine(ScriptedEngine):
    """Stops forever after `hold_after` tokens of every reply; None: replies are complete."""

    hold_after: int | None = None

    async def _pace(self, request: Request, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        if self.hold_after is None:
            return await super()._pace(request, ids, log_probs)
        for place in range(self.hold_after if request.on_tokens is not None else 0):
            assert request.on_tokens is not None
            request.on_tokens(ids[place : place + 1], log_probs[place : place + 1])
            await asyncio.sleep(0)
        await asyncio.get_running_loop().create_future()


class Served:
    """A gateway that runs in a thread, with a client and its parts."""

    def __init__(
        self,
        engine: Any,
        tokenizer: ChatTokenizer,
        store: Path,
        *,
        executor: AgentExecutor | None = None,
        **config: Any,
    ) -> None:
        self.engine, self.where = engine, store
        settings = {"port": 0, "model": "tiny", "durability": "normal", **config}
        self.store = Store(store, "normal")
        self.gateway = Gateway(
            GatewayConfig(**settings), RoleEngine(engine, tokenizer, True), self.store, TokenSigner(SECRET), executor
        )
        self._up, self._down = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._up.wait(LIMIT_S)
        self.client = httpx.Client(base_url=self.url, timeout=LIMIT_S)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with serving(self.gateway) as self.url:
            self._up.set()
            await self._down.wait()

    def stop(self) -> None:
        """Stop it as SIGTERM does; the store stays."""
        if self._thread.is_alive():
            self.client.close()
            self.loop.call_soon_threadsafe(self._down.set)
            self._thread.join(LIMIT_S)
            self.store.close()

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """POST; underscores in header names become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(path, content=None if body is None else json.dumps(body), headers=named)

    def open(self, **opening: Any) -> Opened:
        response = self.post("/init_trajectory", opening)
        assert response.status_code == 200, response.text
        return Opened(self, response.json())

    def steps(self, uid: str) -> tuple[Step, ...]:
        return self.trajectory(uid).steps

    def trajectory(self, uid: str) -> Trajectory:
        return self.store.trajectories.get(uid)

    def in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` in the gateway's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT_S)

    def close_silent(self) -> int:
        """Close silent trajectories now and return their number."""
        return self.in_loop(self.gateway.upkeep.expire())

    def metric(self, line: str) -> float:
        """The value of one line of `/metrics`; 0 if it is missing."""
        page = self.client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        found = [entry.rpartition(" ")[2] for entry in page.splitlines() if entry.rpartition(" ")[0] == line]
        return float(found[0]) if found else 0.0


class Opened:
    """An open trajectory: its agent makes calls, its owner registers and completes it."""

    def __init__(self, served: Served, told: dict[str, Any]) -> None:
        self.served, self.told = served, told
        self.uid, self.prompt_uid, self.token = told["trajectory_uid"], told["prompt_uid"], told["token"]
        self.owner_token = told["owner_token"]
        self.path = f"/{self.uid}/{self.prompt_uid}/v1"

    def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        token = self.owner_token if path in ("/register_trajectory", "/complete_trajectory") else self.token
        return self.served.post(f"{self.path}{path}", body, **{"Authorization": f"Bearer {token}", **headers})

    def chat(self, messages: Any = HELLO, key: str | None = None, **more: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency_Key": key}
        return self.post("/chat/completions", {"model": "tiny", "messages": messages, **more}, **headers)

    def say(self, messages: list[Any], **more: Any) -> list[Any]:
        """`messages` and the reply to them."""
        response = self.chat(messages, **more)
        assert response.status_code == 200, response.text
        return [*messages, response.json()["choices"][0]["message"]]

    def complete(self, **told: Any) -> httpx.Response:
        return self.post("/complete_trajectory", told)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.served.steps(self.uid)


def error(response: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message of an error in OpenAI's shape."""
    told = response.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    return response.status_code, told["code"], told["message"]


def events(text: str) -> list[Any]:
    """The data of server-sent events without `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
