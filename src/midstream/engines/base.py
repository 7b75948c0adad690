"""The engine protocols, and their requests and completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from midstream.core.errors import PromptTooLong
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, FinishReason, Message, ToolSchema
from midstream.engines.publication import Publication

OnTokens = Callable[[Sequence[int], Sequence[float]], None]
"""Called in the event loop with the ids and log-probabilities of tokens as they are sampled, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One model call.

    `session` names the trajectory: an engine may keep its KV cache between calls of one session. `role` is the module
    role that makes the call. `adapter` names the published weights to sample from; empty leaves it to the engine, see
    `PolicyEngine.adapter`. `prompt_ids` was rendered from `messages` and `tools`; engines that take text only, or
    need the images, use those. `top_log_probs` is the number of most likely tokens to return per position. `on_tokens`
    is called while the response is sampled; it has received the last token before `generate` returns."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    session: str = ""
    role: str = ""
    adapter: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    constraint: Constraint | None = None
    top_log_probs: int = 0
    on_tokens: OnTokens | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A sampled response: `ids` and `log_probs` have one entry per token (both empty from an engine that returns text
    only).

    `ids` include the end token if the model sampled one. All tokens come from one `policy_version` of the weights that
    are published as `adapter`, empty for a model that is not trained. `prompt_ids` is set if the engine rendered the
    prompt itself, as it must for images. `top_log_probs` holds, for each token, pairs (id, log-probability) of the most
    likely ones if the request asked for them. `over_allowed` says that all log-probabilities are over the tokens that
    the request's constraint allowed, instead of the whole vocabulary.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int = 0
    adapter: str = ""
    latency_s: float = 0.0
    prompt_ids: tuple[int, ...] | None = None
    top_log_probs: tuple[tuple[tuple[int, float], ...], ...] = ()
    over_allowed: bool = False
    usage: tuple[int, int] | None = None
    """Prompt and response tokens as a remote server counts them; None where `ids` say it, or nobody does."""
    trainable: bool = True
    """False for a reply that is copied from another trajectory; only the copy in that trajectory is trained on."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.log_probs):
            raise ValueError(f"{len(self.ids)} tokens but {len(self.log_probs)} log-probabilities")


def room_for(request: Request, context_length: int) -> int:
    """Return the most tokens a response may have; raises `PromptTooLong` if there is no room for one."""
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
        """Most tokens of a prompt and its response together."""
        ...

    async def generate(self, request: Request) -> Completion:
        """Answer one call. Raises `EngineError` on failure, `PromptTooLong` if the prompt does not fit, and
        `Unsupported` for a setting this engine does not support. Cancelling the call abandons it."""
        ...

    def join(self, session: str) -> None:
        """Register a trajectory: it will call `generate`, or `leave`."""
        ...

    def leave(self, session: str) -> None:
        """Unregister a trajectory: its cached state may be freed."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Kinds of weights that `load_weights` accepts."""

    adapters: bool = True
    """LoRA adapters in peft's format."""
    full: bool = True
    """Whole models."""


@runtime_checkable
class PolicyEngine(Engine, Protocol):
    """An engine whose weights can be replaced while it serves calls."""

    @property
    def adapter(self) -> str:
        """Name of the weights that a request without an `adapter` is sampled from, see `Publication`: those loaded
        last. Empty for a model that is not trained."""
        ...

    @property
    def tokens_sampled(self) -> int:
        """Tokens sampled since the engine was created."""
        ...

    @property
    def tokens_prefilled(self) -> int:
        """Prompt tokens processed since the engine was created."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Pause inside the context: running calls finish first and new ones wait. Nests."""
        ...

    async def load_weights(self, publication: Publication) -> None:
        """Sample from the weights of `publication` from now on, for requests that name its adapter or none. Adapters of
        other names stay. No call spans two versions. Raises `Unsupported` for a kind of weights outside `capabilities`,
        `ModelError` and `EngineError` if loading fails."""
        ...

    def frozen(self) -> Engine:
        """Return an engine for the same model without its adapter. Raises `Unsupported` if there is none."""
        ...
