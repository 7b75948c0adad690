"""`generalist`: asks another model. The last resort when no other tool fits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic import Field

from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.core.toolsets import DEFAULT_TIMEOUT_S
from midstream.tools.declare import tool
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset

Ask = Callable[[str], Awaitable[str]]
"""Sends a prompt to a model and returns its reply."""


class GeneralistSettings(Config):
    """`flow.tool_settings.generalist`."""

    url: str
    """An OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """Name of the model."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    instructions: str = "Answer the question step by step. Be brief."
    """System prompt."""
    max_tokens: int = Field(default=512, ge=1)
    """Maximum tokens of a reply."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds a reply may take."""


def generalist_toolset(ask: Ask, timeout_s: float = DEFAULT_TIMEOUT_S) -> FunctionToolset:
    """Return the tool `generalist`, answered by `ask`."""

    @tool(
        timeout_s=timeout_s,
        idempotent=True,
        returns="text",
        limits=["may be wrong, also about facts and arithmetic"],
        best_practices=["use it when no other tool fits", "ask one clear question with all it needs"],
        examples=[{"question": "Summarise in one sentence: ..."}],
    )
    async def generalist(question: str) -> str:
        """Ask a language model a question in words."""
        return await ask(question)

    return FunctionToolset([generalist])


def _remote(settings: GeneralistSettings) -> FunctionToolset:
    from midstream.engines.base import Request
    from midstream.engines.openai import OpenAIEngine

    engine = OpenAIEngine(settings.url, settings.model, settings.api_key_env, timeout_s=settings.timeout_s)

    async def ask(question: str) -> str:
        messages = ({"role": "system", "content": settings.instructions}, {"role": "user", "content": question})
        sampling = SamplingParams(max_tokens=settings.max_tokens, temperature=0)
        reply = await engine.generate(Request(prompt_ids=(), sampling=sampling, messages=messages))
        return reply.text

    return generalist_toolset(ask, settings.timeout_s)


generalist = ToolKind(GeneralistSettings, _remote)
