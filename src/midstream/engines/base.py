"""The one protocol every engine speaks, and what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One model call.

    `session` names the trajectory: an engine may keep its computation (the KV cache) between calls of one session.
    `role` is the module role that speaks. `messages` is what `prompt_ids` was rendered from, for engines that take text
    only."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    session: str = ""
    role: str = ""
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled: `ids` and `log_probs` have one entry per token (both empty from an engine that speaks text
    only).

    `ids` include the end token when the model sampled one. `policy_version` is the one version all tokens came from.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int = 0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.log_probs):
            raise ValueError(f"{len(self.ids)} tokens but {len(self.log_probs)} log-probabilities")


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
        """Answer one call. Raises `EngineError` when it cannot, `PromptTooLong` when the prompt does not fit."""
        ...

    def join(self, session: str) -> None:
        """A trajectory begins: it will call, or leave."""
        ...

    def leave(self, session: str) -> None:
        """A trajectory ended: whatever is kept for it may go."""
        ...
