"""OpenAI's responses: `POST /v1/responses`. A response can go on from an earlier one of its trajectory."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from midstream.core.types import Message
from midstream.gateway.answer import Answer, answer_of, call_id
from midstream.gateway.dialects.shared import Body, JsonObject, event, held, tool_schema
from midstream.gateway.errors import ApiError
from midstream.gateway.live import Live
from midstream.gateway.service import Ask, Gateway, Piece
from midstream.record.recorder import Call


class InputText(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(default=None, max_length=0)
    logprobs: list[Any] | None = None


class InputImage(Body):
    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


Shown = Annotated[InputText | InputImage, Field(discriminator="type")]


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Shown]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCall(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None
    namespace: None = None
    caller: None = None


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Shown]
    id: str | None = None
    status: str | None = None
    caller: None = None


class ReasoningText(Body):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: str | None = None


def _type_of(item: Any) -> str:
    """A message need not say what it is."""
    return str(item.get("type") or "message") if isinstance(item, dict) else getattr(item, "type", "message")


Item = Annotated[
    Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[InputMessage, Tag("message")],
    Discriminator(_type_of),
]


class FunctionTool(Body):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    defer_loading: Literal[False] | None = None


class NamedTool(Body):
    type: Literal["function"]
    name: str


class TextOptions(Body):
    format: JsonObject | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(Body):
    """A response to be made."""

    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    store: bool | None = None
    """Every call is stored, whatever this says."""
    metadata: dict[str, str] | None = None
    """Kept with the step."""
    user: str | None = None
    """Kept with the step."""
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Reasoning comes back in clear, so there is nothing encrypted to include."""
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """Prompts are cached by trajectory, whatever this says."""
    background: Literal[False] | None = None


def parse(request: ResponseRequest, gateway: Gateway, live: Live) -> Ask:
    """The call that `request` asks for."""
    request.model = gateway.model_name(request.model, live)
    messages: list[Message] = []
    if request.previous_response_id is not None:
        messages += _earlier(request.previous_response_id, gateway, live)
    if request.instructions:
        # Those of an earlier response do not carry over.
        messages = [m for m in messages if m["role"] != "system"]
        messages.insert(0, {"role": "system", "content": request.instructions})
    messages += _messages(request.input)
    if not messages:
        raise ApiError(400, "there is no input", param="input")
    tools = [tool_schema(tool.name, tool.description, tool.parameters) for tool in request.tools or ()]
    asked = request.tool_choice
    choice = asked.name if isinstance(asked, NamedTool) else asked or "auto"
    declared, constraint = held(
        gateway.tokenizer, tools, choice, _format(request), parallel=request.parallel_tool_calls is not False
    )
    kept = {"user": request.user, "metadata": request.metadata, "safety_identifier": request.safety_identifier}
    call = Call(
        role=request.model,
        messages=tuple(messages),
        tools=declared,
        constraint=constraint,
        sampling=gateway.sampling(
            max_tokens=request.max_output_tokens, temperature=request.temperature, top_p=request.top_p
        ),
        metadata={name: value for name, value in kept.items() if value},
    )
    return Ask(call=call)


def body(request: ResponseRequest, answer: Answer) -> dict[str, Any]:
    """A response."""
    return {**_head(answer.id, request, _status(answer)), "output": _output(answer), "usage": _usage(answer)} | (
        {"incomplete_details": {"reason": "max_output_tokens"}} if _status(answer) == "incomplete" else {}
    )


async def events(request: ResponseRequest, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
    """The response's events. Items open and close as what is said changes its kind."""
    number = 0

    def told(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1, **fields}, kind)

    item: dict[str, Any] | None = None
    said, place, begun = "", -1, False
    async for piece in pieces:
        if not begun:
            begun = True
            response = {**_head(piece.answer_id, request, "in_progress"), "output": [], "usage": None}
            yield told("response.created", response=response)
            yield told("response.in_progress", response=response)
        delta = piece.delta
        if delta is not None and (delta.content or delta.reasoning or delta.call is not None):
            opened = _item(piece)
            if item is None or opened["id"] != item["id"]:
                if item is not None:
                    for kind, fields in _closing(item, said):
                        yield told(kind, output_index=place, **fields)
                item, said, place = opened, "", place + 1
                yield told("response.output_item.added", output_index=place, item=item)
                if part := _part(item, ""):
                    kind = "response.content_part.added"
                    yield told(kind, item_id=item["id"], output_index=place, content_index=0, part=part)
            if new := delta.content or delta.reasoning or delta.arguments:
                said += new
                where = {} if item["type"] == "function_call" else {"content_index": 0}
                extra = {"logprobs": []} if item["type"] == "message" else {}
                yield told(_DELTAS[item["type"]], item_id=item["id"], output_index=place, **where, delta=new, **extra)
        if piece.answer is not None:
            if item is not None:
                for kind, fields in _closing(item, said):
                    yield told(kind, output_index=place, **fields)
            whole = body(request, piece.answer)
            yield told(f"response.{whole['status']}", response=whole)


_DELTAS = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


def _item(piece: Piece) -> dict[str, Any]:
    """The item that a delta belongs to, as it begins."""
    delta, answer_id = piece.delta, piece.answer_id
    assert delta is not None
    if delta.call is not None:
        return _called(answer_id, delta.call, delta.name, "", "in_progress")
    if delta.reasoning:
        return {"id": f"rs_{answer_id}", "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}
    return {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}


def _closing(item: dict[str, Any], said: str) -> list[tuple[str, dict[str, Any]]]:
    """The events that end an item."""
    own = {"item_id": item["id"]}
    if item["type"] == "function_call":
        done = {**item, "arguments": said, "status": "completed"}
        return [
            ("response.function_call_arguments.done", {**own, "name": item["name"], "arguments": said}),
            ("response.output_item.done", {"item": done}),
        ]
    part = _part(item, said)
    done = {**item, "content": [part], "status": "completed"}
    kind = "response.output_text.done" if item["type"] == "message" else "response.reasoning_text.done"
    extra = {"logprobs": []} if item["type"] == "message" else {}
    return [
        (kind, {**own, "content_index": 0, "text": said, **extra}),
        ("response.content_part.done", {**own, "content_index": 0, "part": part}),
        ("response.output_item.done", {"item": done}),
    ]


def _part(item: dict[str, Any], text: str) -> dict[str, Any] | None:
    if item["type"] == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text} if item["type"] == "reasoning" else None


def _output(answer: Answer) -> list[dict[str, Any]]:
    reply, done = answer.reply, _status(answer)
    items: list[dict[str, Any]] = []
    if reply.reasoning:
        item = {"id": f"rs_{answer.id}", "type": "reasoning", "summary": [], "status": "completed"}
        items.append({**item, "content": [{"type": "reasoning_text", "text": reply.reasoning}]})
    if reply.content or not reply.tool_calls:
        part = {"type": "output_text", "text": reply.content, "annotations": [], "logprobs": []}
        item = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "status": done}
        items.append({**item, "content": [part]})
    for place, called in enumerate(reply.tool_calls):
        items.append(_called(answer.id, place, called.name, called.arguments, "completed"))
    return items


def _called(answer_id: str, place: int, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{answer_id}{place:02d}",
        "type": "function_call",
        "call_id": call_id(answer_id, place),
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, sampled = len(answer.step.prompt_ids), len(answer.step.response_ids)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": sampled,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + sampled,
    }


def _head(answer_id: str, request: ResponseRequest, status: str) -> dict[str, Any]:
    choice = request.tool_choice
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "metadata": request.metadata or {},
        "model": request.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_output_tokens": request.max_output_tokens,
        "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice or "auto",
        "tools": [
            tool.model_dump(include={"type", "name", "description", "parameters", "strict"})
            for tool in request.tools or ()
        ],
    }


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat completions word it."""
    asked = None if request.text is None else request.text.format
    if asked is None or asked.get("type") != "json_schema":
        return asked
    inner = {name: value for name, value in asked.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _earlier(response_id: str, gateway: Gateway, live: Live) -> list[Message]:
    """The conversation up to and with an earlier response."""
    for step in live.recorder.finished():
        if f"resp_{step.metadata.get('answer_id')}" == response_id:
            return [*step.messages, answer_of(step, gateway.tokenizer).message()]
    raise ApiError(
        404, f"trajectory '{live.uid}' has no response '{response_id}' to go on from", param="previous_response_id"
    )


def _messages(given: str | list[Item]) -> list[Message]:
    """The input as messages. What an assistant thought, said and called in one breath is one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Message] = []
    speaking: Message | None = None
    for item in given:
        own = isinstance(item, FunctionCall | ReasoningItem) or (
            isinstance(item, InputMessage) and item.role == "assistant"
        )
        if not own:
            speaking = None
        elif (
            speaking is None
            or isinstance(item, ReasoningItem)
            or (isinstance(item, InputMessage) and (speaking["content"] or "tool_calls" in speaking))
        ):
            speaking = {"role": "assistant", "content": ""}
            messages.append(speaking)
        if isinstance(item, FunctionCall):
            assert speaking is not None
            called = {"name": item.name, "arguments": item.arguments}
            speaking.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": called})
            speaking["content"] = speaking["content"] or None
        elif isinstance(item, ReasoningItem):
            assert speaking is not None
            speaking["reasoning_content"] = "".join(part.text for part in item.content or item.summary)
        elif isinstance(item, FunctionOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
        elif speaking is not None:
            speaking["content"] = _content(item.content)
        else:
            messages.append({"role": item.role, "content": _content(item.content)})
    return messages


def _content(parts: str | list[InputText | InputImage]) -> Any:
    if isinstance(parts, str):
        return parts
    if all(isinstance(part, InputText) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, InputText))
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, InputText)
        else {"type": "image_url", "image_url": {"url": part.image_url}}
        for part in parts
    ]
