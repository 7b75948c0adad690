"""The vLLM engine: a running vLLM server samples and returns the ids and log-probabilities of every token.

Prompts and responses are token ids; nothing is re-encoded. Midstream's log-probabilities are those of the whole
vocabulary at the sampling temperature; the server reports them in some modes only, see `LogProbs`. Adapters are loaded
from a folder that the server can read, each under the same name."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Any

from midstream.core.errors import ConfigError, EngineError, Unsupported
from midstream.core.seeds import derive_seed
from midstream.engines.base import Capabilities, Completion, Request, room_for
from midstream.engines.chat import ChatTokenizer
from midstream.engines.grammar import check
from midstream.engines.pause import Pause
from midstream.engines.publication import Publication
from midstream.engines.vllm.server import Refused, Server
from midstream.engines.vllm.wire import Response, body_of, prompt_log_probs, with_images

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LOWEST_TEMPERATURE = 0.01
"""vLLM's minimum for temperatures other than 0."""


class LogProbs(Enum):
    """What the server reports, its `--logprobs-mode`.

    Raw ones are those of the whole vocabulary at temperature 1; processed ones are taken after temperature, penalties
    and cuts. Both are taken after a constraint, whose masks depend on the server's backend and cannot be recomputed. So
    raw ones are right at temperature 1, and processed ones without penalties and cuts, if there is no constraint. At
    temperature 1 the tokens can also be scored afterwards, as a prompt, which covers every case; at other temperatures
    that is impossible, and the call raises `Unsupported`."""

    RAW = "raw_logprobs"
    PROCESSED = "processed_logprobs"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Weights that the server has: the name of the model there, their version, and the salt of their prefix cache."""

    model: str
    version: int
    salt: str


class VLLMEngine:
    """Samples from a vLLM server; created by `connect`. `policy_version` and `adapter` are those of the publication
    loaded last; until there is one, the model is as the server has it."""

    def __init__(
        self,
        server: Server,
        tokenizer: ChatTokenizer,
        *,
        name: str,
        model: str,
        context_length: int,
        log_probs: LogProbs,
        policy_version: int,
    ) -> None:
        self.name, self.tokenizer, self.context_length = name, tokenizer, context_length
        self.policy_version, self.adapter = policy_version, ""
        self.capabilities = Capabilities(full=False)
        self.tokens_sampled = self.tokens_prefilled = 0
        """`tokens_prefilled` includes prompt tokens that the server had cached."""
        self._server, self._base, self._log_probs = server, model, log_probs
        self._end_ids = sorted(tokenizer.end_ids)
        self._loaded = {"": _Loaded(model, policy_version, _salt(model, policy_version))}
        """By adapter; empty is the model itself."""
        self._pause = Pause()
        self._unknown: set[str] = set()
        """Adapters whose weights are not known, because loading others was interrupted."""

    @classmethod
    async def connect(
        cls,
        url: str,
        tokenizer: ChatTokenizer,
        *,
        model: str | None = None,
        policy_version: int = 0,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        name: str | None = None,
    ) -> VLLMEngine:
        """Connect to the server at `url`, whose model has `tokenizer`. `model` is the one to sample from (None: the
        first it serves), `timeout_s` the longest time without data. Raises `ConfigError` for an unsuitable server,
        `EngineError` if it does not answer."""
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
        """Pause inside the context: no call is running, and new calls wait."""
        return self._pause.exclusive()

    async def load_weights(self, publication: Publication) -> None:
        """Load an adapter under its name; the server must be able to read its folder. Running calls finish first and
        new ones wait: no call spans two versions."""
        folder, name = publication.folder.resolve(), publication.adapter
        # A server of 0.32 ends when it finds a config without weights.
        if not all((folder / name).is_file() for name in ADAPTER_FILES):
            raise Unsupported(f"{self.name} takes LoRA adapters only, and '{folder}' has none; set policy.tuning=lora")
        if name == self._base:
            raise Unsupported(f"{self.name} serves a model called '{name}' already; set another policy.adapter")
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
        async with self.exclusive():
            known = name not in self._unknown
            self._unknown.add(name)
            try:
                await self._server.ask("/v1/load_lora_adapter", body)
            except Refused as error:
                if known:
                    self._unknown.discard(name)
                hint = "; does it run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True?"
                raise EngineError(f"{error}{hint if 'Not Found' in str(error) else ''}") from None
            self._unknown.discard(name)
            self.adapter, self.policy_version = name, publication.version
            salt = _salt(folder, publication.version, publication.uid)
            self._loaded[name] = _Loaded(name, publication.version, salt)
            await self._free_prefixes()

    async def _free_prefixes(self) -> None:
        # Versions never share cached prefixes, because each has its own salt; this only frees memory.
        try:
            await self._server.ask("/reset_prefix_cache", {})
        except Refused as error:
            if error.status != 404:  # the path exists in development mode only
                raise

    def frozen(self) -> VLLMEngine:
        """Return an engine for the server's base model, which it serves beside the adapter."""
        return VLLMEngine(
            self._server,
            self.tokenizer,
            name="frozen",
            model=self._base,
            context_length=self.context_length,
            log_probs=self._log_probs,
            policy_version=0,
        )

    async def generate(self, request: Request) -> Completion:
        images = with_images(request)
        again = self._scored_again(request, images)
        # Scoring samples one extra token.
        limit = room_for(request, self.context_length - again)
        if not request.prompt_ids and not images:
            raise EngineError("an empty prompt: there is nothing to continue")
        if request.constraint is not None:
            await asyncio.to_thread(check, request.constraint)
        began = time.perf_counter()
        async with self._pause.call():
            adapter = request.adapter or self.adapter
            weights = self._weights(adapter)
            body = body_of(request, limit, self._end_ids) | _named(weights)
            response = Response(request.top_log_probs)
            path = "/v1/chat/completions" if images else "/v1/completions"
            async with aclosing(self._server.answers(path, body)) as answers:
                async for answer in answers:
                    ids, log_probs = response.take(answer)
                    if ids and request.on_tokens is not None and not again:
                        request.on_tokens(ids, log_probs)
            reason = response.reason()
            if response.prompt_ids is None or (not images and response.prompt_ids != request.prompt_ids):
                raise EngineError(f"{self.name} did not confirm the prompt it was given")
            if again:
                await self._score(request, response, weights)
                if request.on_tokens is not None:
                    request.on_tokens(response.ids, response.log_probs)
            self.tokens_sampled += len(response.ids)
            self.tokens_prefilled += len(response.prompt_ids)
            return Completion(
                ids=tuple(response.ids),
                log_probs=tuple(response.log_probs),
                text=self.tokenizer.text_of(response.ids),
                finish_reason=reason,
                policy_version=weights.version,
                adapter=adapter,
                latency_s=time.perf_counter() - began,
                prompt_ids=response.prompt_ids if images else None,
                top_log_probs=tuple(response.top),
            )

    def _weights(self, adapter: str) -> _Loaded:
        """Return the weights of `adapter`. Raises `EngineError` if they are not known."""
        if adapter in self._unknown and adapter in self._loaded:
            raise EngineError(
                f"{self.name}: loading an adapter was interrupted, so its weights are unknown; load again"
            )
        if adapter not in self._loaded:
            raise EngineError(f"{self.name} has loaded no adapter '{adapter}'")
        return self._loaded[adapter]

    def _scored_again(self, request: Request, images: bool) -> bool:
        """Whether the tokens must be scored afterwards, see `LogProbs`; raises `Unsupported` if that is impossible."""
        sampling = request.sampling
        temperature = sampling.temperature or 1.0
        if temperature < LOWEST_TEMPERATURE:
            raise Unsupported(f"{self.name}: vLLM supports no temperature below {LOWEST_TEMPERATURE} except 0")
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

    async def _score(self, request: Request, response: Response, weights: _Loaded) -> None:
        """Replace the reported log-probabilities by those of the same tokens as a prompt, at temperature 1."""
        body: dict[str, Any] = {
            "prompt": [*request.prompt_ids, *response.ids],
            "prompt_logprobs": request.top_log_probs,
            "max_tokens": 1,
            "temperature": 0,
        }
        answer = await self._server.ask("/v1/completions", body | _named(weights))
        response.log_probs, response.top = prompt_log_probs(answer, response.ids, request.top_log_probs)


def _named(weights: _Loaded) -> dict[str, str]:
    """Return the fields of a request body for `weights`: the model, and a salt that separates its prefix cache from
    those of other versions."""
    return {"model": weights.model, "cache_salt": weights.salt}


def _salt(*weights: object) -> str:
    """Return a salt: vLLM accepts neither paths nor "@" in one."""
    return str(derive_seed("weights", *weights))


async def _probe(server: Server, model: str, tokenizer: ChatTokenizer) -> LogProbs:
    """Detect what the server reports with a call that allows a single token at temperature 2: processed, it has
    probability 1. Raises `ConfigError` if it reports logits, whose exponentials do not sum to 1."""
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
