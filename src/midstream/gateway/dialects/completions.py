"""OpenAI's text completions: `POST /v1/completions`, with a prompt of text or of token ids."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from midstream.engines.chat import ChatTokenizer
from midstream.gateway.answer import Answer
from midstream.gateway.asks import Ask, Piece
from midstream.gateway.dialects.arguments import Argument, Refused, What
from midstream.gateway.dialects.chat import StreamOptions, usage
from midstream.gateway.dialects.shared import SamplingArguments, event
from midstream.gateway.errors import ApiError
from midstream.gateway.live import Live
from midstream.gateway.service import Gateway
from midstream.record.recorder import Call
from midstream.record.tree import told

TokenIds = list[int]


class CompletionRequest(SamplingArguments):
    """A text completion of one prompt."""

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
    best_of: Annotated[Literal[1] | None, Argument(What.IGNORED)] = None
    """Only 1, which asks for nothing: every choice is returned."""
    suffix: Refused = None
    """Text is only continued."""


def parse(request: CompletionRequest, gateway: Gateway, live: Live) -> Ask:
    """The call that `request` asks for."""
    request.model = gateway.model_name(request.model, live)
    if request.logprobs and request.stream:
        raise ApiError(400, "logprobs above 0 are not given in a stream; ask without stream", param="logprobs")
    prompt = gateway.tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else tuple(request.prompt)
    if not prompt:
        raise ApiError(400, "the prompt is empty: there is nothing to continue", param="prompt")
    call = Call(
        role=request.model,
        prompt_ids=gateway.checked_ids(prompt, "prompt"),
        top_log_probs=request.logprobs or 0,
        sampling=request.sampling(gateway, request.max_tokens),
        metadata={"user": request.user} if request.user else {},
    )
    return Ask(call=call, choices=request.n or 1)


def body(request: CompletionRequest, answers: Sequence[Answer], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """A text completion."""
    choices: list[dict[str, Any]] = []
    for place, answer in enumerate(answers):
        text = told(answer.step.text, answer.step.metadata.get("stop", ()))
        before = tokenizer.decode(answer.step.prompt_ids) if request.echo else ""
        log_probs = None if request.logprobs is None else _log_probs(answer, tokenizer, len(before))
        choices.append(
            {
                "index": place,
                "text": before + text,
                "logprobs": log_probs,
                "finish_reason": str(answer.step.finish_reason),
            }
        )
    return {**_head(answers[0].id, request), "choices": choices, "usage": usage(answers)}


async def chunks(
    request: CompletionRequest, pieces: AsyncGenerator[Piece], tokenizer: ChatTokenizer
) -> AsyncGenerator[bytes]:
    """Text completion chunks, as server-sent events."""
    answers: list[Answer] = []
    head: dict[str, Any] = {}
    begun: set[int] = set()
    async for piece in pieces:
        head = head or _head(piece.answer_id, request)
        if request.echo and piece.choice not in begun and piece.answer is None:
            prompt = request.prompt if isinstance(request.prompt, str) else tokenizer.decode(request.prompt)
            yield event({**head, "choices": [_chunk(piece.choice, prompt)]})
        begun.add(piece.choice)
        if piece.delta is not None and piece.delta.content:
            yield event({**head, "choices": [_chunk(piece.choice, piece.delta.content)]})
        if piece.answer is not None:
            answers.append(piece.answer)
            yield event({**head, "choices": [_chunk(piece.choice, "", str(piece.answer.step.finish_reason))]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage(answers)})
    yield event("[DONE]")


def _chunk(choice: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": choice, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _head(answer_id: str, request: CompletionRequest) -> dict[str, Any]:
    created = int(time.time())
    return {"id": f"cmpl-{answer_id}", "object": "text_completion", "created": created, "model": request.model}


def _log_probs(answer: Answer, tokenizer: ChatTokenizer, offset: int) -> dict[str, Any]:
    step = answer.step
    tokens = [tokenizer.decode((token,)) for token in step.response_ids]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    top = [{tokenizer.decode((t,)): p for t, p in likeliest} for likeliest in answer.top or ()]
    return {
        "tokens": tokens,
        "token_logprobs": list(step.rollout_log_probs or ()),
        "top_logprobs": top or None,
        "text_offset": offsets,
    }
