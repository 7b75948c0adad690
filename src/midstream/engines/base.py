"""The one protocol every engine speaks, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from midstream.core.errors import PromptTooLong
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Message, ToolSchema

OnTokens = Callable[[Sequence[int], Sequence[float]], None]
"""Hears of tokens as they are sampled: their ids and log-probabilities, in order, in the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What a response must be, to its end token: JSON that a schema allows, or text that a regular expression or a Lark
    grammar (in llguidance's dialect) accepts whole. Log-probabilities stay those of the whole vocabulary."""

    kind: Literal["json_schema", "regex", "lark"]
    grammar: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One model call.

    `session` names the trajectory: an engine may keep its computation (the KV cache) between calls of one session.
    `role` is the module role that speaks. `messages` is what `prompt_ids` was rendered from, for engines that take text
    only, or that must see the images in it; `tools` are the declarations that were rendered with them.
    `top_log_probs` asks for that many of the likeliest tokens at each place. `on_tokens` is called while the response
    is made; the last token has been handed to it when `generate` returns."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    session: str = ""
    role: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    constraint: Constraint | None = None
    top_log_probs: int = 0
    on_tokens: OnTokens | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled: `ids` and `log_probs` have one entry per token (both empty from an engine that speaks text
    only).

    `ids` include the end token when the model sampled one. `policy_version` is the one version all tokens came from.
    `prompt_ids` is set where the engine rendered the prompt itself, as it must for images. `top_log_probs` holds, for
    each token, (id, log-probability) of the likeliest ones when the request asked for them.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int = 0
    latency_s: float = 0.0
    prompt_ids: tuple[int, ...] | None = None
    top_log_probs: tuple[tuple[tuple[int, float], ...], ...] = ()

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.log_probs):
            raise ValueError(f"{len(self.ids)} tokens but {len(self.log_probs)} log-probabilities")


def room_for(request: Request, context_length: int) -> int:
    """Most tokens that a response may have; raises `PromptTooLong` when there is no room for one."""
    room = context_length - len(request.prompt_ids)
    if room < 1:
        raise PromptTooLong(
            f"a prompt of {len(request.prompt_ids)} tokens leaves no room in a context of {context_length}"
        )
    return min(room, request.sampling.max_tokens)


class Engine(Protocol):
    """Turns prompt token ids into sampled token ids with log-probabilities."""

    name: str

    @property
    def policy_version(self) -> int: ...

    @property
    def context_length(self) -> int:
        """Most tokens a prompt and its response may have together."""
        ...

    async def generate(self, request: Request) -> Completion:
        """Answer one call. Raises `EngineError` when it cannot, `PromptTooLong` when the prompt does not fit, and
        `Unsupported` for a part of the request that this engine cannot honour. Cancelling the call gives it up."""
        ...

    def join(self, session: str) -> None:
        """A trajectory begins: it will call, or leave."""
        ...

    def leave(self, session: str) -> None:
        """A trajectory ended: whatever is kept for it may go."""
        ...
