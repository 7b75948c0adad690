"""Opens every engine in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from midstream.engines.chat import ChatTokenizer
from midstream.engines.replay import ReplayEngine, ReplayRecorder
from midstream.engines.replicas import Replicas
from midstream.engines.scripted import ScriptedEngine
from midstream.engines.vllm import VLLMEngine

CONTEXT = 512
KINDS = ("torch", "torch, deterministic", "scripted", "replay", "vllm", "vllm, raw", "replicas")
REAL = pytest.param("vllm, real", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])


@dataclass(frozen=True)
class Subject:
    """An engine under test and its capabilities."""

    engine: Any
    tokenizer: ChatTokenizer
    seeded: bool = True
    """Whether the seed determines samples."""
    waits: bool = True
    """Whether calls take time and can be delayed."""


Check = Callable[[Subject], Coroutine[Any, Any, None]]


@pytest.fixture(params=[*KINDS, REAL])
def run(request, make_policy, tiny_tokenizer: ChatTokenizer, start_vllm, tmp_path: Path) -> Callable[[Check], None]:
    """Run a check on an engine of this kind."""
    kind: str = request.param
    real = request.getfixturevalue("start_real_vllm")("processed_logprobs") if kind == "vllm, real" else None

    @asynccontextmanager
    async def vllm(mode: str = "processed_logprobs") -> AsyncIterator[VLLMEngine]:
        server = start_vllm(mode=mode, context_length=CONTEXT, token_s=0.003)
        engine = await VLLMEngine.connect(server.url, tiny_tokenizer)
        yield engine
        await engine.close()

    def torch(**settings: Any) -> Any:
        policy = make_policy(**settings)
        policy.decoder.context_length = CONTEXT
        return policy.engine

    async def opened(check: Check) -> None:
        match kind:
            case "torch" | "torch, deterministic":
                await check(Subject(torch(deterministic="," in kind), tiny_tokenizer))
            case "scripted":
                completion = "The query is the question of the user, and the result is one two three four five six."
                engine = ScriptedEngine(tiny_tokenizer, completion, tokens_per_s=500, context_length=CONTEXT)
                await check(Subject(engine, tiny_tokenizer, seeded=False))
            case "vllm" | "vllm, raw":
                async with vllm("raw_logprobs" if "raw" in kind else "processed_logprobs") as engine:
                    await check(Subject(engine, tiny_tokenizer))
            case "vllm, real":
                assert real is not None
                engine = await VLLMEngine.connect(real.url, real.tokenizer)
                await check(Subject(engine, real.tokenizer))
                await engine.close()
            case "replicas":
                async with vllm() as one, vllm() as other:
                    await check(Subject(Replicas([one, other]), tiny_tokenizer))

    def run(check: Check) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60):
                await opened(check)

        if kind != "replay":
            return asyncio.run(limited())
        recording = ReplayRecorder(torch(), tmp_path / "calls.jsonl")
        asyncio.run(check(Subject(recording, tiny_tokenizer, waits=False)))
        recording.close()
        return asyncio.run(check(Subject(ReplayEngine(tmp_path / "calls.jsonl"), tiny_tokenizer, waits=False)))

    return run
