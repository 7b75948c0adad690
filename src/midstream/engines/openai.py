"""A frozen remote model behind an OpenAI-compatible server. It takes messages and returns text; its replies are never
trained on."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import httpx

from midstream.core.errors import ConfigError, EngineError, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request

RETRIES = 3
"""Retries of a busy or failing server, after 0.5, 1, 2 s."""
FIRST_WAIT_S = 0.5
_NEUTRAL = SamplingParams()


class OpenAIEngine:
    """Calls `{url}/chat/completions`. `url` is the OpenAI client's `base_url`, which usually ends in `/v1`."""

    policy_version = 0
    context_length = 1 << 20

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key_env: str | None = None,
        timeout_s: float = 120.0,
        *,
        api_key: str | None = None,
    ) -> None:
        self.name = url
        self._url, self._model, self._timeout_s = url.rstrip("/"), model, timeout_s
        key = api_key
        if api_key_env is not None:
            key = os.environ.get(api_key_env)
            if not key:
                raise ConfigError(
                    f"the environment variable {api_key_env} holds no key for {url}", f"export {api_key_env}=..."
                )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        sampling = request.sampling
        for setting in ("top_k", "min_p", "repetition_penalty"):
            if getattr(sampling, setting) != getattr(_NEUTRAL, setting):
                raise Unsupported(f"{self.name}: the OpenAI API has no {setting}; take it out of this role's sampling")
        for part in ("tools", "constraint", "top_log_probs", "on_tokens"):
            if getattr(request, part):
                raise Unsupported(f"{self.name}: a remote model returns complete text only and does not support {part}")
        body = {
            "messages": list(request.messages),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "model": self._model or "default",
        }
        for penalty in ("presence_penalty", "frequency_penalty"):
            if getattr(sampling, penalty):
                body[penalty] = getattr(sampling, penalty)
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        began = time.perf_counter()
        response = await self._post(body)
        try:
            answered = response.json()
            choice = answered["choices"][0]
            text = choice["message"]["content"]
            if not isinstance(text, str | None):
                raise TypeError("content is not text")
        except (ValueError, KeyError, IndexError, TypeError):
            raise EngineError(
                f"{self.name} answered with something that is not a chat completion: {response.text[:200]}"
            ) from None
        reason = FinishReason.LENGTH if choice.get("finish_reason") == "length" else FinishReason.STOP
        latency_s = time.perf_counter() - began
        return Completion(
            ids=(),
            log_probs=(),
            text=text or "",
            finish_reason=reason,
            latency_s=latency_s,
            usage=_usage(answered.get("usage")),
        )

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        problem = ""
        for attempt in range(RETRIES + 1):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                async with httpx.AsyncClient(timeout=self._timeout_s, headers=self._headers) as client:
                    response = await client.post(f"{self._url}/chat/completions", json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 429 or response.status_code >= 500:
                problem = f"HTTP {response.status_code}: {response.text[:200]}"
                continue
            if response.status_code != 200:
                raise EngineError(f"{self.name} refused the call: HTTP {response.status_code}: {response.text[:300]}")
            return response
        raise EngineError(f"{self.name} did not answer after {RETRIES + 1} tries; last: {problem}")


def _usage(usage: Any) -> tuple[int, int] | None:
    """Prompt and response tokens of a response's `usage`; None where it has none."""
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    known = [count for count in counts if isinstance(count, int) and count >= 0]
    return (known[0], known[1]) if len(known) == 2 else None
