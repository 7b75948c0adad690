"""vLLM's `POST /inference/v1/generate`: token ids in, token ids with log-probabilities out.

Clients that render prompts themselves use it, such as the training client of verifiers and prime-rl (package
`renderers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from midstream.gateway.dialects.arguments import Argument, Ignored, Refused, Treatment
from midstream.gateway.dialects.chat import usage
from midstream.gateway.dialects.shared import Body, SamplingArguments
from midstream.gateway.http.errors import ApiError
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import Answer, created_at
from midstream.gateway.sessions.call_request import CallRequest
from midstream.record.recorder import Call

MOST_CANDIDATES = 20


class GenerateSampling(SamplingArguments):
    """The fields of vLLM's `SamplingParams` that apply here."""

    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_CANDIDATES)
    """Number of likeliest tokens to return at each position, beside the sampled one, which is always returned."""
    stop_token_ids: list[int] | None = None
    """Only the model's end tokens."""
    min_tokens: Annotated[Literal[0] | None, Argument(Treatment.IGNORED)] = None
    """Only 0: the policy ends where it wants to."""
    skip_special_tokens: Ignored = None
    """Ids are returned as sampled."""
    spaces_between_special_tokens: Ignored = None
    include_stop_str_in_output: Ignored = None
    detokenize: Ignored = None
    flat_logprobs: Ignored = None
    output_kind: Ignored = None
    extra_args: Ignored = None
    ignore_eos: Refused = None
    bad_words: Refused = None
    allowed_token_ids: Refused = None
    prompt_logprobs: Refused = None
    truncate_prompt_tokens: Refused = None
    structured_outputs: Refused = None


class GenerateRequest(Body):
    """Samples a continuation of token ids."""

    token_ids: list[int] = Field(min_length=1)
    sampling_params: GenerateSampling = Field(default_factory=GenerateSampling)
    model: str | None = None
    request_id: str | None = None
    """Returned with the answer; otherwise the answer has a new id."""
    return_token_ids: bool | None = None
    """Whether to return the ids of the prompt too."""
    output_mode: Annotated[Literal["tokens"] | None, Argument(Treatment.IGNORED)] = None
    """Only `tokens`: text comes from the other endpoints."""
    priority: Ignored = None
    cache_salt: Ignored = None
    """Nothing is cached for other trajectories."""
    token_offsets: Ignored = None
    reasoning_ended: Ignored = None
    reasoning_parser_kwargs: Ignored = None
    stream_options: Ignored = None
    stream: Refused = None
    features: Refused = None
    content_parts: Refused = None
    kv_transfer_params: Refused = None
    ec_transfer_params: Refused = None


def parse(request: GenerateRequest, gateway: Gateway, active: ActiveTrajectory) -> CallRequest:
    """Return the call of `request`."""
    request.model = gateway.model_name(request.model, active)
    settings = request.sampling_params
    ends = gateway.tokenizer.end_ids
    if strange := sorted(set(settings.stop_token_ids or ()) - ends):
        raise ApiError(
            400,
            f"{strange} do not end a reply of {request.model}, {sorted(ends)} do; stop_token_ids may name only these",
            param="sampling_params.stop_token_ids",
        )
    call = Call(
        role=request.model,
        prompt_ids=gateway.checked_ids(request.token_ids, "token_ids"),
        top_log_probs=settings.logprobs or 0,
        sampling=settings.sampling(gateway, settings.max_tokens),
    )
    return CallRequest(call=call, model=request.model, choices=settings.n or 1)


def body(request: GenerateRequest, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the answer. Log-probabilities contain their token twice: as `token_id`, like vLLM, and as `token`, like
    earlier versions of vLLM, which `renderers` requires."""
    return {
        "request_id": request.request_id or f"generate-{answers[0].id}",
        "model": request.model,
        "created": created_at(answers[0].id),
        "output_mode": "tokens",
        "choices": [_choice(place, answer) for place, answer in enumerate(answers)],
        "usage": usage(answers),
        "prompt_token_ids": request.token_ids if request.return_token_ids else None,
    }


def _choice(place: int, answer: Answer) -> dict[str, Any]:
    step = answer.step
    content: list[dict[str, Any]] | None = None
    if step.rollout_log_probs is not None:
        top = answer.top or ((),) * len(step.response_ids)
        sampled = zip(step.response_ids, step.rollout_log_probs, top, strict=True)
        content = [_position(token, log_prob, likeliest) for token, log_prob, likeliest in sampled]
    return {
        "index": place,
        "finish_reason": str(step.finish_reason),
        "stop_reason": None,
        "token_ids": list(step.response_ids),
        "logprobs": None if content is None else {"content": content},
    }


def _position(token: int, log_prob: float, likeliest: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the sampled token and the candidates: the token itself, then the others by rank."""
    others = [one for one in likeliest if one[0] != token]
    return {**_named(token, log_prob), "top_logprobs": [_named(*one) for one in [(token, log_prob), *others]]}


def _named(token: int, log_prob: float) -> dict[str, Any]:
    return {"token": f"token_id:{token}", "token_id": token, "logprob": log_prob}
