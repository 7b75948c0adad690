"""HTTP client for a vLLM server: JSON requests, JSON or streamed answers, descriptive errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from midstream.core.errors import EngineError, EngineUnreachable, PromptTooLong, Unsupported

FIRST_WAIT_S = 0.5
"""Delay before the first retry; doubles with each retry."""
_CONNECT_S = 10.0


class Refused(EngineError):
    """The server rejected the call; its state is unchanged."""

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)


class Server:
    """The server at `url`, which may end in `/v1`. Retries a call up to `retries` times after a connection error, HTTP
    429 or 5xx, unless part of the answer has arrived."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float, retries: int) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._retries = retries
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the whole answer to one call (a GET without `body`)."""
        async with aclosing(self.answers(path, body)) as answers:
            async for answer in answers:
                return answer
        raise EngineError(f"{self.url}{path} answered with nothing")

    async def answers(self, path: str, body: Mapping[str, Any] | None = None) -> AsyncGenerator[Any, None]:
        """Yield the answer, piece by piece if `body` requests a stream. Raises `EngineUnreachable` if the server does
        not answer or disconnects, `PromptTooLong` and `Unsupported` according to its rejection, `Refused` for other
        rejections, and `EngineError` otherwise."""
        problem = ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            begun = False
            try:
                async with self._client.stream("GET" if body is None else "POST", path, json=body) as response:
                    if response.status_code != 200:
                        message = _message(await response.aread())
                        if response.status_code == 429 or response.status_code >= 500:
                            problem = f"HTTP {response.status_code}: {message}"
                            continue
                        raise self._refusal(path, response.status_code, message, body or {})
                    if not (body or {}).get("stream"):
                        yield self._parsed(path, await response.aread())
                        return
                    async for line in response.aiter_lines():
                        if line.startswith("data: ") and line != "data: [DONE]":
                            piece = self._parsed(path, line[len("data: ") :])
                            if "error" in piece:
                                raise EngineError(f"{self.url}{path} failed in mid-stream: {_error_text(piece)}")
                            begun = True
                            yield piece
                    return
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
                if begun:
                    raise EngineUnreachable(f"{self.url} disconnected in mid-stream: {problem}") from None
                if isinstance(error, httpx.ReadTimeout):
                    raise EngineError(f"{self.url}{path} did not answer in time") from None
        raise EngineUnreachable(f"{self.url} did not answer after {self._retries + 1} tries; last: {problem}")

    def _parsed(self, path: str, raw: bytes | str) -> Any:
        # Some of vLLM's own endpoints answer in plain text.
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        if not text.lstrip().startswith(("{", "[")):
            return {"text": text}
        try:
            return json.loads(text)
        except ValueError:
            raise EngineError(f"{self.url}{path} answered with something that is not JSON: {text[:200]}") from None

    def _refusal(self, path: str, status: int, message: str, body: Mapping[str, Any]) -> Exception:
        if "maximum context length" in message:
            return PromptTooLong(f"{self.url}: {message}")
        if status == 400 and "structured_outputs" in body:
            return Unsupported(f"{self.url} cannot honour the constraint: {message}")
        return Refused(f"{self.url}{path} refused the call: HTTP {status}: {message}", status)


def _message(raw: bytes) -> str:
    text = raw.decode("utf-8", "replace")
    try:
        return _error_text(json.loads(text))
    except ValueError:
        return text[:300]


def _error_text(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, Mapping) else None
    return str(error.get("message") if isinstance(error, Mapping) else error or answer)[:500]
