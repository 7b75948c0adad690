"""Shared by the dialects: strict request bodies, sampling arguments, and server-sent events."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from midstream.core.sampling import SamplingParams
from midstream.gateway.dialects.arguments import Argument, Treatment
from midstream.gateway.dialects.plain_json import JsonObject

if TYPE_CHECKING:
    from midstream.gateway.service import Gateway


class Body(BaseModel):
    """A request body. Unknown arguments are errors, unless they ask for nothing (see `arguments`)."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Function(Body):
    """A function that an agent offers to the model."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


TopK = Annotated[int | None, BeforeValidator(lambda value: None if value == -1 else value)]
"""vLLM's clients send -1 for none."""


class SamplingArguments(Body):
    """Sampling arguments that OpenAI's APIs share. The limit on tokens has a different name in each API."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: TopK = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logit_bias: Annotated[Any, Argument(Treatment.REFUSED, "leave it out: the policy is not biased")] = None
    """The policy is not biased."""

    def sampling(self, gateway: Gateway, max_tokens: int | None) -> SamplingParams:
        """Return the sampling parameters, with the gateway's defaults."""
        settings = {name: getattr(self, name) for name in _SAMPLING}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return gateway.sampling(max_tokens=max_tokens, stop=stop or None, **settings)


_SAMPLING = [name for name in SamplingArguments.model_fields if name not in ("stop", "logit_bias")]


def event(data: Any, name: str | None = None) -> bytes:
    """Return a server-sent event."""
    head = f"event: {name}\n" if name is not None else ""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{head}data: {text}\n\n".encode(errors="backslashreplace")
