"""OpenAI's responses: `POST /v1/responses`. A response can go on from an earlier one of its trajectory."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from midstream.core.types import Message
from midstream.gateway.answer import Answer, answer_of, call_id
from midstream.gateway.asks import Ask, Piece
from midstream.gateway.dialects.hints import step_metadata
from midstream.gateway.dialects.responses_request import (
    FunctionCall,
    FunctionOutput,
    FunctionTool,
    InputImage,
    InputMessage,
    InputText,
    Item,
    NamedTool,
    NamespaceTool,
    ReasoningItem,
    ResponseRequest,
)
from midstream.gateway.dialects.shared import event, tool_schema
from midstream.gateway.dialects.tools import HostedTool, Offer, offer
from midstream.gateway.errors import ApiError
from midstream.gateway.live import Live
from midstream.gateway.service import Gateway
from midstream.record.recorder import Call


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
    messages += _messages(request.input, _offer(request))
    if not messages:
        raise ApiError(400, "there is no input", param="input")
    offered = _offer(request)
    asked = request.tool_choice
    choice = _visible(offered, asked.namespace, asked.name) if isinstance(asked, NamedTool) else asked or "auto"
    declared, constraint = offered.hold(
        gateway.tokenizer, choice, _format(request), parallel=request.parallel_tool_calls is not False
    )
    if "message.output_text.logprobs" in (request.include or ()):
        raise ApiError(400, "log-probabilities are given by chat completions, not here", param="include")
    call = Call(
        role=request.model,
        messages=tuple(messages),
        tools=declared,
        constraint=constraint,
        sampling=gateway.sampling(
            max_tokens=request.max_output_tokens, temperature=request.temperature, top_p=request.top_p
        ),
        metadata=step_metadata(
            request,
            user=request.user,
            metadata=request.metadata,
            safety_identifier=request.safety_identifier,
            left_out=gateway.leave_out([tool.type for tool in offered.left_out]),
        ),
    )
    return Ask(call=call)


def _offer(request: ResponseRequest) -> Offer:
    """The functions and hosted tools of a request, those in namespaces too."""
    listed = [("", tool) for tool in request.tools or () if not isinstance(tool, NamespaceTool)]
    for space in request.tools or ():
        if isinstance(space, NamespaceTool):
            listed += [(space.name, tool) for tool in space.tools]
    return offer(
        [
            (space, tool_schema(tool.name, tool.description, tool.parameters))
            for space, tool in listed
            if isinstance(tool, FunctionTool)
        ],
        [tool for _, tool in listed if isinstance(tool, HostedTool)],
    )


def _visible(offered: Offer, namespace: str | None, name: str) -> str:
    """The name under which the model sees a function."""
    seen = [visible for visible, own in offered.namespaces.items() if own == (namespace, name)]
    return seen[0] if seen else name


def _in_namespace(request: ResponseRequest, item: dict[str, Any]) -> dict[str, Any]:
    """An output item as its client knows it: a call with the namespace of its function."""
    found = _offer(request).namespaces.get(item["name"]) if item["type"] == "function_call" else None
    return item if found is None else {**item, "namespace": found[0], "name": found[1]}


def body(request: ResponseRequest, answer: Answer) -> dict[str, Any]:
    """A response."""
    output = [_in_namespace(request, item) for item in _output(answer)]
    return {**_head(answer.id, request, _status(answer)), "output": output, "usage": _usage(answer)} | (
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
            opened = _in_namespace(request, _item(piece))
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
        "tool_choice": choice.model_dump(exclude_none=True) if isinstance(choice, NamedTool) else choice or "auto",
        "tools": [
            tool.model_dump(include={"type", "name", "description", "parameters", "strict"})
            if isinstance(tool, FunctionTool)
            else tool.model_dump(exclude_unset=True, exclude_none=True)
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


def _messages(given: str | list[Item], offered: Offer) -> list[Message]:
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
            called = {"name": _visible(offered, item.namespace, item.name), "arguments": item.arguments}
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
