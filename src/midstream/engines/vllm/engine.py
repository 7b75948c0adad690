"""The vLLM engine: a running vLLM server samples, and hands over the ids and log-probabilities of every token.

Prompts go as token ids and responses come as such; nothing is encoded again. What Midstream calls log-probabilities,
those of the whole vocabulary at the sampling temperature, the server gives in part only: see `LogProbs`. Adapters are
loaded from a folder that the server can read, one after another under the same name."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import AbstractAsyncContextManager, aclosing
from enum import Enum
from pathlib import Path
from typing import Any

from midstream.core.errors import ConfigError, EngineError, Unsupported
from midstream.core.seeds import derive_seed
from midstream.engines.base import Completion, Request, room_for
from midstream.engines.chat import ChatTokenizer
from midstream.engines.grammar import check
from midstream.engines.pause import Pause
from midstream.engines.vllm.server import Refused, Server
from midstream.engines.vllm.wire import Response, body_of, prompt_log_probs, with_images

LOWEST_TEMPERATURE = 0.01
"""vLLM samples at this one when asked for less that is not 0."""


class LogProbs(Enum):
    """What the server reports, its `--logprobs-mode`.

    Raw ones are those of the whole vocabulary at temperature 1; processed ones are taken after temperature, penalties
    and cuts. Both are taken after a constraint. So raw ones are right at temperature 1, processed ones where nothing is
    penalised or cut. At temperature 1 the tokens can also be scored afterwards, as a prompt, which makes up for all of
    this; at another temperature there is no way, and the call is `Unsupported`."""

    RAW = "raw_logprobs"
    PROCESSED = "processed_logprobs"


class VLLMEngine:
    """Samples from a vLLM server; made by `connect`. `policy_version` counts what `load_adapter` loaded."""

    def __init__(
        self,
        server: Server,
        tokenizer: ChatTokenizer,
        *,
        name: str,
        model: str,
        context_length: int,
        log_probs: LogProbs,
        adapter: str,
        policy_version: int,
    ) -> None:
        self.name, self.tokenizer, self.context_length = name, tokenizer, context_length
        self.policy_version = policy_version
        self._server, self._model, self._adapter, self._log_probs = server, model, adapter, log_probs
        self._end_ids = sorted(tokenizer.end_ids)
        self._salt = _salt(model, policy_version)
        self._pause = Pause()
        self._known = True
        """Whether it is sure which weights the server has: not after a load that broke off half way."""

    @classmethod
    async def connect(
        cls,
        url: str,
        tokenizer: ChatTokenizer,
        *,
        model: str | None = None,
        adapter: str = "policy",
        policy_version: int = 0,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        name: str | None = None,
    ) -> VLLMEngine:
        """The engine of the server at `url`, whose model has `tokenizer`. `model` is the one to sample from (None: the
        first it serves), `adapter` the name that adapters are loaded under, `timeout_s` the longest silence. Raises
        `ConfigError` for a server that cannot be used, `EngineError` for one that does not answer."""
        key = os.environ.get(api_key_env) if api_key_env else None
        if api_key_env and not key:
            raise ConfigError(
                f"the environment variable {api_key_env} holds no key for {url}", f"export {api_key_env}=..."
            )
        server = Server(url, key, timeout_s, retries)
        try:
            served = {card["id"]: card for card in (await server.ask("/v1/models"))["data"]}
            chosen = served.get(model) if model else next(iter(served.values()), None)
            if chosen is None:
                raise ConfigError(f"{url} does not serve '{model}'", f"it serves: {', '.join(served)}")
            return cls(
                server,
                tokenizer,
                name=name or url,
                model=chosen["id"],
                context_length=int(chosen["max_model_len"]),
                log_probs=await _probe(server, chosen["id"], tokenizer),
                adapter=adapter,
                policy_version=policy_version,
            )
        except (KeyError, TypeError, ValueError) as error:
            await server.close()
            raise ConfigError(f"{url} is no vLLM server: {type(error).__name__}: {error}") from None
        except BaseException:
            await server.close()
            raise

    async def close(self) -> None:
        await self._server.close()

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Inside, no call is under way, and new ones wait."""
        return self._pause.exclusive()

    async def load_adapter(self, folder: Path, policy_version: int) -> None:
        """Sample with the adapter in `folder` (peft's format, where the server can read it) from now on, and call that
        `policy_version`. Calls under way finish first, new ones wait: no call spans two versions."""
        body = {"lora_name": self._adapter, "lora_path": str(folder.resolve()), "load_inplace": True}
        async with self.exclusive():
            known, self._known = self._known, self._model != self._adapter
            try:
                await self._server.ask("/v1/load_lora_adapter", body)
            except Refused as error:
                self._known = known
                hint = "; does it run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True?"
                raise EngineError(f"{error}{hint if 'Not Found' in str(error) else ''}") from None
            self._model, self.policy_version, self._known = self._adapter, policy_version, True
            self._salt = _salt(folder.resolve(), policy_version)
            await self._free_prefixes()

    async def _free_prefixes(self) -> None:
        # No version uses what another left behind, as each has a salt of its own: this only frees the room it takes.
        try:
            await self._server.ask("/reset_prefix_cache", {})
        except Refused as error:
            if error.status != 404:  # a path that servers have in development mode
                raise

    async def generate(self, request: Request) -> Completion:
        images = with_images(request)
        again = self._scored_again(request, images)
        # Scoring samples one token more.
        limit = room_for(request, self.context_length - again)
        if not request.prompt_ids and not images:
            raise EngineError("an empty prompt: there is nothing to continue")
        if request.constraint is not None:
            await asyncio.to_thread(check, request.constraint)
        began = time.perf_counter()
        async with self._pause.call():
            if not self._known:
                raise EngineError(f"{self.name}: loading an adapter broke off, so its weights are unknown; load again")
            version = self.policy_version
            body = body_of(request, limit, self._end_ids) | self._weights()
            response = Response(request.top_log_probs)
            path = "/v1/chat/completions" if images else "/v1/completions"
            async with aclosing(self._server.answers(path, body)) as answers:
                async for answer in answers:
                    ids, log_probs = response.take(answer)
                    if ids and request.on_tokens is not None and not again:
                        request.on_tokens(ids, log_probs)
            reason = response.reason()
            if response.prompt_ids is None or (not images and response.prompt_ids != request.prompt_ids):
                raise EngineError(f"{self.name} does not say that it answers to the prompt it was given")
            if again:
                await self._score(request, response)
                if request.on_tokens is not None:
                    request.on_tokens(response.ids, response.log_probs)
            return Completion(
                ids=tuple(response.ids),
                log_probs=tuple(response.log_probs),
                text=self.tokenizer.text_of(response.ids),
                finish_reason=reason,
                policy_version=version,
                latency_s=time.perf_counter() - began,
                prompt_ids=response.prompt_ids if images else None,
                top_log_probs=tuple(response.top),
            )

    def _weights(self) -> dict[str, str]:
        """The model, and a salt that keeps what other versions left in the prefix cache away from this one."""
        return {"model": self._model, "cache_salt": self._salt}

    def _scored_again(self, request: Request, images: bool) -> bool:
        """Whether the tokens must be scored afterwards, see `LogProbs`; raises `Unsupported` where that cannot be."""
        sampling = request.sampling
        temperature = sampling.temperature or 1.0
        if temperature < LOWEST_TEMPERATURE:
            raise Unsupported(f"{self.name}: vLLM samples at no temperature below {LOWEST_TEMPERATURE} but 0")
        changed = [name for name in ("top_k", "min_p") if getattr(sampling, name) and sampling.temperature]
        changed += ["top_p"] if sampling.top_p < 1 and sampling.temperature else []
        changed += ["penalties"] if sampling.penalised else []
        wrong = ["a constraint"] if request.constraint is not None else []
        if self._log_probs is LogProbs.PROCESSED:
            wrong += changed
        elif temperature != 1:
            raise Unsupported(
                f"{self.name} reports log-probabilities at temperature 1 and was asked for temperature {temperature}; "
                f"start it with --logprobs-mode {LogProbs.PROCESSED.value}"
            )
        if wrong and (temperature != 1 or images):
            where = "with images" if images else f"at temperature {temperature}"
            raise Unsupported(
                f"{self.name}: {where} and with {', '.join(wrong)} vLLM cannot report the log-probabilities of the "
                "whole vocabulary; use temperature 1" + (" and no images" if images else ", or leave that out")
            )
        return bool(wrong)

    async def _score(self, request: Request, response: Response) -> None:
        """Replace what was reported by what the model gives the same tokens as a prompt, at temperature 1."""
        body: dict[str, Any] = {
            "prompt": [*request.prompt_ids, *response.ids],
            "prompt_logprobs": request.top_log_probs,
            "max_tokens": 1,
            "temperature": 0,
        }
        answer = await self._server.ask("/v1/completions", body | self._weights())
        response.log_probs, response.top = prompt_log_probs(answer, response.ids, request.top_log_probs)


def _salt(*weights: object) -> str:
    """vLLM takes no path, nor anything with an @."""
    return str(derive_seed("weights", *weights))


async def _probe(server: Server, model: str, tokenizer: ChatTokenizer) -> LogProbs:
    """What the server reports, found by a call that leaves one token to choose from at temperature 2: once processed,
    that one is certain. Raises `ConfigError` where it reports logits, which do not add up to 1."""
    body = {
        "model": model,
        "prompt": list(tokenizer.encode("One, two, three, four: these are")),
        "max_tokens": 4,
        "temperature": 2.0,
        "top_k": 1,
        "ignore_eos": True,
        "logprobs": 5,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    response = Response(5)
    response.take(await server.ask("/v1/completions", body))
    if any(sum(math.exp(value) for _, value in place) > 1.01 for place in response.top):
        raise ConfigError(
            f"{server.url} reports logits, not log-probabilities",
            f"start it with --logprobs-mode {LogProbs.PROCESSED.value} (or {LogProbs.RAW.value})",
        )
    return LogProbs.PROCESSED if all(value == 0 for value in response.log_probs) else LogProbs.RAW
