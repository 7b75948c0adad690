"""Creates the policy engine of a config: in-process torch, canned replies, or vLLM servers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from midstream.core.errors import EngineError, RunError
from midstream.engines.base import PolicyEngine, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.models import resolve

if TYPE_CHECKING:
    from midstream.engines.torch.decoder import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of a policy engine. `engine` is `("torch",)`, `("scripted",)`, or the URLs of vLLM servers. `run` is the
    run directory whose policy it serves: what is `auto` is as `run.json` records it, once there is one."""

    model: str
    engine: tuple[str, ...] = ("torch",)
    device: str = "auto"
    dtype: str = "auto"
    numerics: Literal["auto", "exact", "fast"] = "auto"
    run: Path | None = None
    concurrency: int = 64
    replies: Sequence[str] = ()
    latency_s: float = 0.0
    tokens_per_s: float | None = None
    api_key_env: str | None = None
    """Environment variable with the API key of vLLM servers."""


async def make_policy_engine(settings: EngineSettings, tokenizer: ChatTokenizer, stack: AsyncExitStack) -> PolicyEngine:
    """Create the engine of `settings`; `stack` closes it. Raises `RunError` if a server does not answer."""
    if settings.engine == ("torch",):
        return _torch(settings, tokenizer)
    if settings.engine == ("scripted",):
        return _scripted(settings, tokenizer)
    from midstream.engines.replicas import Replicas
    from midstream.engines.vllm import VLLMEngine

    engines: list[VLLMEngine] = []
    for url in settings.engine:
        try:
            engines.append(await VLLMEngine.connect(url, tokenizer, api_key_env=settings.api_key_env))
        except EngineError as error:
            raise RunError(str(error), "start the vLLM server first, and give its address without /v1") from None
        stack.push_async_callback(engines[-1].close)
    return engines[0] if len(engines) == 1 else Replicas(engines)


def make_engine_on(
    decoder: Decoder, tokenizer: ChatTokenizer, *, adapter: str, slots: int, deterministic: bool
) -> PolicyEngine:
    """Create an engine that samples from `decoder`, whose weights somebody else may be training. `adapter` names those
    that it samples from unless a request names others, see `Publication`."""
    from midstream.engines.torch.engine import TorchEngine

    return TorchEngine(decoder, tokenizer, adapter=adapter, slots=slots, deterministic=deterministic)


def _torch(settings: EngineSettings, tokenizer: ChatTokenizer) -> PolicyEngine:
    from midstream.engines.torch.compute import submit
    from midstream.engines.torch.engine import TorchEngine
    from midstream.engines.torch.loading import load_policy
    from midstream.engines.torch.numerics import read_recorded, settle

    auto = settings.numerics == "auto"
    recorded = read_recorded(settings.run) if settings.run is not None and auto else None
    decoder = submit(load_policy, settings, resolve(settings.model), recorded).result()
    submit(settle, decoder, settings.numerics, recorded, required=not auto).result()
    return TorchEngine(decoder, tokenizer, slots=settings.concurrency, numerics=settings.numerics)


def _scripted(settings: EngineSettings, tokenizer: ChatTokenizer) -> PolicyEngine:
    from midstream.engines.scripted import ScriptedEngine

    def reply(request: Request) -> str:
        # Chosen by the conversation, so that a restart changes nothing.
        answered = sum(message["role"] == "assistant" for message in request.messages)
        return settings.replies[answered % len(settings.replies)]

    return ScriptedEngine(tokenizer, reply, settings.latency_s, settings.tokens_per_s)
