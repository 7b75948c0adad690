"""OpenAI's text completions: `POST /v1/completions`, for text or token ids."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from midstream.engines.chat import ChatTokenizer
from midstream.engines.long_text import LONG, off_loop
from midstream.gateway.dialects import log_probs
from midstream.gateway.dialects.arguments import Argument, Refused, Treatment
from midstream.gateway.dialects.chat import StreamOptions, usage
from midstream.gateway.dialects.shared import SamplingArguments, event
from midstream.gateway.http.errors import ApiError
from midstream.gateway.limits.length import check_texts
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import Answer, created_at
from midstream.gateway.sessions.call_request import CallRequest, Piece
from midstream.record.recorder import Call
from midstream.record.tree import truncate_at_stop

TokenIds = list[int]


class CompletionRequest(SamplingArguments):
    """Creates a text completion of one prompt."""

    model: str | None = None
    prompt: str | TokenIds
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Kept with the step."""
    best_of: Annotated[Literal[1] | None, Argument(Treatment.IGNORED)] = None
    """Only 1: every choice is returned."""
    suffix: Refused = None
    """Text is only continued at its end."""


async def parse(request: CompletionRequest, gateway: Gateway, active: ActiveTrajectory) -> CallRequest:
    """Return the call of `request`. Long prompts are encoded off the event loop."""
    request.model = gateway.model_name(request.model, active)
    if request.logprobs is not None and request.stream:
        raise ApiError(400, "logprobs are not supported in a stream; leave out stream", param="logprobs")
    if request.logprobs is not None and request.echo:
        raise ApiError(400, "echo has no log-probabilities of the prompt; leave out echo or logprobs", param="echo")
    call = Call(
        role=request.model,
        prompt_ids=await _prompt_ids(request.prompt, gateway),
        top_log_probs=request.logprobs or 0,
        sampling=request.sampling(gateway, request.max_tokens),
        metadata={"user": request.user} if request.user else {},
    )
    return CallRequest(call=call, model=request.model, choices=request.n or 1)


async def _prompt_ids(prompt: str | TokenIds, gateway: Gateway) -> tuple[int, ...]:
    """Return the ids of the prompt. Raises `ApiError` 400 for an empty prompt or wrong ids, and `PromptTooLong`."""
    if isinstance(prompt, str):
        await check_texts(gateway.tokenizer, gateway.role_engine.engine.context_length, [prompt])
        encode = gateway.tokenizer.encode
        ids = await off_loop(encode, prompt) if len(prompt) > LONG else encode(prompt)
    else:
        ids = prompt
    if not ids:
        raise ApiError(400, "the prompt is empty", param="prompt")
    return gateway.checked_ids(ids, "prompt")


def body(request: CompletionRequest, answers: Sequence[Answer], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return a text completion."""
    choices: list[dict[str, Any]] = []
    for place, answer in enumerate(answers):
        text = truncate_at_stop(answer.step.text, answer.step.metadata.get("stop", ()))
        choices.append(
            {
                "index": place,
                "text": _echoed(request, tokenizer) + text,
                "logprobs": None if request.logprobs is None else log_probs.of_text(answer, text, tokenizer),
                "finish_reason": str(answer.step.finish_reason),
            }
        )
    return {**_head(answers[0].id, request), "choices": choices, "usage": usage(answers)}


async def chunks(
    request: CompletionRequest, pieces: AsyncGenerator[Piece], tokenizer: ChatTokenizer
) -> AsyncGenerator[bytes]:
    """Yield text completion chunks as server-sent events."""
    answers: list[Answer] = []
    head: dict[str, Any] = {}
    begun: set[int] = set()
    async for piece in pieces:
        head = head or _head(piece.answer_id, request)
        if request.echo and piece.choice not in begun:
            yield event({**head, "choices": [_chunk(piece.choice, _echoed(request, tokenizer))]})
        begun.add(piece.choice)
        if piece.delta is not None and piece.delta.content:
            yield event({**head, "choices": [_chunk(piece.choice, piece.delta.content)]})
        if piece.answer is not None:
            answers.append(piece.answer)
            yield event({**head, "choices": [_chunk(piece.choice, "", str(piece.answer.step.finish_reason))]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage(answers)})
    yield event("[DONE]")


def _echoed(request: CompletionRequest, tokenizer: ChatTokenizer) -> str:
    """Return the prompt if it is to be echoed."""
    if not request.echo:
        return ""
    return request.prompt if isinstance(request.prompt, str) else tokenizer.decode(request.prompt)


def _chunk(choice: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": choice, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _head(answer_id: str, request: CompletionRequest) -> dict[str, Any]:
    return {
        "id": f"cmpl-{answer_id}",
        "object": "text_completion",
        "created": created_at(answer_id),
        "model": request.model,
    }
