"""Request and response format of vLLM's OpenAI server (0.32): token ids both ways, nothing re-encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.errors import EngineError
from midstream.core.types import FinishReason
from midstream.engines.base import Request

_KINDS = {"json_schema": "json", "regex": "regex", "lark": "grammar"}
_TOKEN = "token_id:"
Top = tuple[tuple[int, float], ...]


def with_images(request: Request) -> bool:
    """Whether a message has parts other than text, which token ids cannot represent."""
    return any(
        isinstance(message.get("content"), list) and any(part.get("type") != "text" for part in message["content"])
        for message in request.messages
    )


def body_of(request: Request, max_tokens: int, end_ids: Sequence[int]) -> dict[str, Any]:
    """Build the request body, except for the model. Every setting is explicit: the server fills in missing ones from
    the checkpoint's `generation_config.json`."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop": list(sampling.stop),
        "stop_token_ids": list(end_ids),
        # Stop strings are matched against this text; ours has special tokens written out.
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": request.on_tokens is not None,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if request.constraint is not None:
        body["structured_outputs"] = {_KINDS[request.constraint.kind]: request.constraint.grammar}
    if with_images(request):
        body |= {"messages": list(request.messages), "logprobs": True}
        # For chats the sampled token itself counts as one of the top tokens.
        body["top_logprobs"] = request.top_log_probs + 1 if request.top_log_probs else 0
        if request.tools:
            # Tools are declared to the model; its output is not parsed as calls.
            body |= {"tools": list(request.tools), "tool_choice": "none"}
    else:
        body |= {"prompt": list(request.prompt_ids), "logprobs": request.top_log_probs}
    return body


class Response:
    """Accumulates one response: `take` each answer, whole or a piece of it."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.top: list[Top] = []
        self.finish: str | None = None
        self.prompt_ids: tuple[int, ...] | None = None

    def take(self, answer: Any) -> tuple[list[int], list[float]]:
        """Add the tokens of `answer`; returns them with their log-probabilities. Raises `EngineError` for a malformed
        answer, or tokens without log-probabilities."""
        try:
            choice = answer["choices"][0] if answer["choices"] else {}
            prompt_ids = choice.get("prompt_token_ids") or answer.get("prompt_token_ids")
            ids = [int(token) for token in choice.get("token_ids") or ()]
            log_probs, top = _log_probs(choice.get("logprobs") or {})
            self.finish = choice.get("finish_reason") or self.finish
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(f"vLLM's answer cannot be read: {type(error).__name__}: {error}") from None
        if len(ids) != len(log_probs):
            raise EngineError(
                f"vLLM returned {len(ids)} token ids and {len(log_probs)} log-probabilities; does it know "
                "return_token_ids? Midstream needs vLLM 0.10.2 or later"
            )
        if prompt_ids is not None:
            self.prompt_ids = tuple(prompt_ids)
        self.ids += ids
        self.log_probs += log_probs
        if self._top:
            self.top += [_likeliest(one, self._top) for one in top]
        return ids, log_probs

    def reason(self) -> FinishReason:
        """Return the finish reason; raises `EngineError` if the response was aborted."""
        if self.finish in ("stop", "tool_calls"):
            return FinishReason.STOP
        if self.finish == "length":
            return FinishReason.LENGTH
        raise EngineError(f"vLLM aborted the response after {len(self.ids)} tokens: finish_reason {self.finish}")


def prompt_log_probs(answer: Any, ids: Sequence[int], top: int) -> tuple[list[float], list[Top]]:
    """Return log-probabilities of a prompt's last tokens, `ids`, from an answer with `prompt_logprobs`."""
    try:
        by_place = answer["choices"][0]["prompt_logprobs"][-len(ids) :]
        places = [{int(token): float(one["logprob"]) for token, one in place.items()} for place in by_place]
        return [place[token] for place, token in zip(places, ids, strict=True)], [
            _likeliest(place, top) for place in places if top
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"vLLM's prompt_logprobs cannot be read: {type(error).__name__}: {error}") from None


def _log_probs(log_probs: Mapping[str, Any]) -> tuple[list[float], list[dict[int, float]]]:
    """Return each token's log-probability and its most likely alternatives, from a completion or a chat."""
    if "content" in log_probs:
        content = log_probs["content"] or ()
        return [float(one["logprob"]) for one in content], [
            {_id(other["token"]): float(other["logprob"]) for other in one["top_logprobs"]} for one in content
        ]
    tops = log_probs.get("top_logprobs") or ()
    return [float(one) for one in log_probs.get("token_logprobs") or ()], [
        {_id(token): float(value) for token, value in (one or {}).items()} for one in tops
    ]


def _likeliest(log_probs: Mapping[int, float], count: int) -> Top:
    return tuple(sorted(log_probs.items(), key=lambda one: -one[1])[:count])


def _id(token: str) -> int:
    if not token.startswith(_TOKEN):
        raise ValueError(f"'{token}' is not a token id")
    return int(token[len(_TOKEN) :])
