"""`GatewayClient`: HTTP client of a gateway's native API, with retries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from midstream.core import clock
from midstream.core.errors import ConfigError, EngineError, PromptTooLong

RETRIES = 5
"""Retries of a call when the gateway is busy, restarting or unreachable, after 0.5, 1, 2, ... s."""
FIRST_WAIT_S = 0.5
PATIENCE_S = 600.0
"""Seconds for which a call is retried while the gateway answers 429 (it is busy or waits for its trainer)."""


class Refused(EngineError):
    """A gateway refused a request. `code` is its error code, such as `trajectory_ended`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class GatewayClient:
    """Client of a gateway's native API. Calls that change something are idempotent, so a retry counts once.

    `key_env` names the environment variable that holds a key of the gateway, for opening trajectories; calls about one
    trajectory are sent with its `token`, if given. Raises `Refused` with the gateway's error, or `EngineError` if the
    gateway does not answer.
    """

    def __init__(self, url: str, key_env: str | None = None, timeout_s: float = 600.0) -> None:
        headers: dict[str, str] = {}
        if key_env is not None:
            key = os.environ.get(key_env)
            if not key:
                raise ConfigError(f"the environment variable {key_env} holds no key for {url}", f"export {key_env}=...")
            headers["Authorization"] = f"Bearer {key}"
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s, limits=limits)

    async def init_trajectory(self, **opening: Any) -> dict[str, Any]:
        """Open a trajectory; `opening` are the fields of `POST /init_trajectory`."""
        return await self.post("/init_trajectory", opening)

    async def generate(self, key: str, token: str | None = None, **fields: Any) -> dict[str, Any]:
        """Sample a response. `fields` are those of `POST /generate`; `key` makes retries idempotent."""
        return await self.post("/generate", fields, key, token)

    async def submit_steps(self, steps: list[dict[str, Any]], channel: str, token: str | None = None) -> int:
        """Submit steps; returns the number of new ones."""
        return (await self.post(f"/submit_steps?channel={channel}", {"steps": steps}, token=token))["accepted"]

    async def complete(self, trajectory_uid: str, token: str | None = None, **fields: Any) -> dict[str, Any]:
        """End a trajectory; `fields` are those of `POST /complete_trajectory`."""
        return await self.post(f"/complete_trajectory/{trajectory_uid}", fields, token=token)

    async def trajectory(self, trajectory_uid: str, token: str | None = None) -> dict[str, Any]:
        """The state of a trajectory."""
        return await self._send("GET", f"/trajectories/{trajectory_uid}", token=token)

    async def model(self) -> str:
        """The name of the served model."""
        return (await self._send("GET", "/v1/models"))["data"][0]["id"]

    async def post(
        self, path: str, body: Mapping[str, Any], key: str | None = None, token: str | None = None
    ) -> dict[str, Any]:
        """Send `POST path`, with retries while the gateway cannot answer."""
        return await self._send("POST", path, body, key, token)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        token: str | None = None,
    ) -> dict[str, Any]:
        problem, failures, until = "", 0, clock.monotonic() + PATIENCE_S
        while failures <= RETRIES:
            try:
                headers = {"Idempotency-Key": key} if key else {}
                if token is not None:
                    headers["Authorization"] = f"Bearer {token}"
                response = await self._http.request(method, path, json=body, headers=headers)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response.json()
                problem, code = _problem(response)
                if response.status_code == 429 and clock.monotonic() < until:
                    await clock.sleep(float(response.headers.get("Retry-After", FIRST_WAIT_S)))
                    continue
                if code == "context_length_exceeded":
                    raise PromptTooLong(problem)
                if response.status_code < 500 and response.status_code != 429:
                    raise Refused(f"the gateway {self.url} refused: {problem}", code)
            failures += 1
            if failures <= RETRIES:
                await clock.sleep(FIRST_WAIT_S * 2 ** (failures - 1))
        raise EngineError(f"the gateway {self.url} did not answer after {failures} tries; last: {problem}")

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _problem(response: httpx.Response) -> tuple[str, str]:
    """Message and code of a gateway's error response; the code is empty if it has none."""
    try:
        error = response.json()["error"]
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:300], ""
