"""OpenAI's chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from midstream.core.toolsets import tool_schema
from midstream.core.types import Message
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.dialects import log_probs
from midstream.gateway.dialects.arguments import Argument, Hint, Ignored, Offered, Refused, Treatment
from midstream.gateway.dialects.hints import step_metadata
from midstream.gateway.dialects.plain_json import JsonObject
from midstream.gateway.dialects.shared import Body, Function, SamplingArguments, event
from midstream.gateway.dialects.tools import HostedChoice, HostedTool, ReplyRules, kind_of, offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import Answer, call_id, created_at, usage_of
from midstream.gateway.sessions.call_request import CallRequest, Piece
from midstream.record.recorder import Call


class ImageUrl(Body):
    url: str
    detail: str | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Body):
    name: str
    arguments: str
    parsed_arguments: Any = None
    """OpenAI's client adds its parsed `arguments`; the text counts."""


class ToolCallPart(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Body):
    """A message of the conversation. Clients that send a reply back unchanged include `refusal`, `annotations`, `audio`
    and `function_call`; they must be empty. OpenAI's client adds its `parsed` content; the text counts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCallPart] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    parsed: Any = None

    def plain(self) -> Message:
        """Return the message in the form of chat templates."""
        content = self.content
        message: Message = {
            "role": self.role,
            "content": content
            if content is None or isinstance(content, str)
            else [part.model_dump(exclude_none=True) for part in content],
        }
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [
                call.model_dump(exclude={"index": True, "function": {"parsed_arguments"}}) for call in self.tool_calls
            ]
        elif content is None:
            message["content"] = ""
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if thought := self.reasoning_content or self.reasoning:
            message["reasoning_content"] = thought
        return message


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None
    """Streams are not padded."""
    continuous_usage_stats: Refused = None
    """Usage comes once, at the end."""


AnyTool = Annotated[
    Annotated[Tool, Tag("function")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of("function", default="function")),
]
AnyChoice = Annotated[
    Annotated[NamedTool, Tag("function")] | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(kind_of("function", default="function")),
]


class ChatRequest(SamplingArguments):
    """Creates a chat completion. Beside OpenAI's arguments, `top_k`, `min_p` and `repetition_penalty` are used."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[AnyTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | AnyChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Kept with the step."""
    metadata: dict[str, str] | None = None
    """Kept with the step."""
    safety_identifier: str | None = None
    """Kept with the step."""
    reasoning_effort: Hint = None
    """Passed to the chat template as `reasoning_effort` (and as `enable_thinking`: false for `none` and `minimal`)."""
    verbosity: Hint = None
    """Passed to the chat template as `verbosity`."""
    web_search_options: Offered = None
    """There is no web search here."""
    store: Ignored = None
    """Every call is stored."""
    service_tier: Ignored = None
    """There is one tier."""
    prediction: Ignored = None
    """It would only speed up the reply."""
    prompt_cache_key: Ignored = None
    """Prompts are cached by trajectory."""
    prompt_cache_options: Ignored = None
    """Prompts are cached by trajectory."""
    prompt_cache_retention: Ignored = None
    """Prompts are cached by trajectory."""
    modalities: list[Literal["text"]] | None = None
    audio: Refused = None
    """Replies are text."""
    moderation: Refused = None
    """Nothing is moderated."""
    functions: Annotated[Any, Argument(Treatment.REFUSED, "use tools")] = None
    """Replaced by `tools`."""
    function_call: Annotated[Any, Argument(Treatment.REFUSED, "use tool_choice")] = None
    """Replaced by `tool_choice`."""


def parse(request: ChatRequest, gateway: Gateway, active: ActiveTrajectory) -> tuple[CallRequest, ReplyRules]:
    """Return the call of `request`, and the rules of its reply."""
    request.model = gateway.model_name(request.model, active)
    messages = tuple(message.plain() for message in request.messages)
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if request.top_logprobs and request.stream:
        raise ApiError(400, "top_logprobs are not supported in a stream; leave out stream", param="top_logprobs")
    functions = [t.function for t in request.tools or () if isinstance(t, Tool)]
    offered = offer(
        [("", tool_schema(function.name, function.description, function.parameters)) for function in functions],
        [tool for tool in request.tools or () if isinstance(tool, HostedTool)],
    )
    tool_choice = request.tool_choice
    choice = tool_choice.function.name if isinstance(tool_choice, NamedTool) else tool_choice or "auto"
    rules = offered.rules(choice, request.response_format, parallel=request.parallel_tool_calls is not False)
    call = Call(
        role=request.model,
        messages=messages,
        tools=rules.declared,
        top_log_probs=request.top_logprobs or 0,
        sampling=request.sampling(gateway, request.max_completion_tokens or request.max_tokens),
        metadata=step_metadata(
            request,
            user=request.user,
            metadata=request.metadata,
            safety_identifier=request.safety_identifier,
            left_out=gateway.metrics.count_dropped(
                [tool.type for tool in offered.dropped] + ["web_search"] * (request.web_search_options is not None)
            ),
        ),
    )
    return CallRequest(call=call, model=request.model, choices=request.n or 1), rules


def body(request: ChatRequest, answers: Sequence[Answer], tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Return a chat completion."""
    choices = [
        {
            "index": place,
            "message": {"refusal": None, "annotations": [], **answer.message()},
            "logprobs": log_probs.of_chat(answer, tokenizer) if request.logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        for place, answer in enumerate(answers)
    ]
    return {**_head(answers[0].id, request, "chat.completion"), "choices": choices, "usage": usage(answers)}


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    prompt, sampled = usage_of(answers)
    thought = sum(answer.thought_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thought},
    }


async def chunks(
    request: ChatRequest, pieces: AsyncGenerator[Piece], tokenizer: ChatTokenizer
) -> AsyncGenerator[bytes]:
    """Yield chat completion chunks as server-sent events."""
    answers: list[Answer] = []
    begun: set[int] = set()
    head: dict[str, Any] = {}
    counts = request.stream_options is not None and request.stream_options.include_usage
    async for piece in pieces:
        head = head or {
            **_head(piece.answer_id, request, "chat.completion.chunk"),
            **({"usage": None} if counts else {}),
        }
        first = [] if piece.choice in begun else [{"role": "assistant", "content": ""}]
        begun.add(piece.choice)
        for delta in [*first, *_deltas(piece)]:
            choice: dict[str, Any] = {"index": piece.choice, "delta": delta, "logprobs": None, "finish_reason": None}
            if request.logprobs and piece.log_probs and delta is not (first[0] if first else None):
                choice["logprobs"] = {
                    "content": [log_probs.of_token(t, p, tokenizer) for t, p in piece.log_probs],
                    "refusal": None,
                }
            yield event({**head, "choices": [choice]})
        if piece.answer is not None:
            answers.append(piece.answer)
            closing = {
                "index": piece.choice,
                "delta": {},
                "logprobs": None,
                "finish_reason": piece.answer.finish_reason,
            }
            yield event({**head, "choices": [closing]})
    if counts:
        yield event({**head, "choices": [], "usage": usage(answers)})
    yield event("[DONE]")


def _deltas(piece: Piece) -> list[dict[str, Any]]:
    delta = piece.delta
    if delta is None:
        return []
    if delta.call is not None:
        called: dict[str, Any] = {"index": delta.call, "function": {"arguments": delta.arguments}}
        if delta.name:
            called |= {"id": call_id(piece.answer_id, delta.call), "type": "function"}
            called["function"] = {"name": delta.name, "arguments": delta.arguments}
        return [{"tool_calls": [called]}]
    if delta.reasoning:
        return [{"reasoning_content": delta.reasoning}]
    return [{"content": delta.content}] if delta.content or piece.log_probs else []


def _head(answer_id: str, request: ChatRequest, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{answer_id}",
        "object": kind,
        "created": created_at(answer_id),
        "model": request.model,
        "service_tier": "default",
    }
