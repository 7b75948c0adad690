"""Formats answers of OpenAI's responses API, whole and as events. Each part of a reply is one item in the order of
sampling, with the same id and index in the stream and in the final list.

Fields follow Open Responses: https://www.openresponses.org/reference
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from midstream.core.sampling import SamplingParams
from midstream.gateway.dialects.responses import offer_of
from midstream.gateway.dialects.responses_request import FunctionTool, NamedTool, ResponseRequest
from midstream.gateway.dialects.shared import event
from midstream.gateway.sessions.answer import Answer, Outline, Part, call_id, created_at
from midstream.gateway.sessions.call_request import Piece

_IDS = {"thought": "rs", "text": "msg", "call": "fc"}
_DELTAS = {
    "text": "response.output_text.delta",
    "thought": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


def body(request: ResponseRequest, answer: Answer, sampling: SamplingParams) -> dict[str, Any]:
    """Return a response, sampled with `sampling`."""
    status, last = _status(answer), len(answer.parts) - 1
    output = [
        _item(request, part, answer.id, status if place == last else "completed")
        for place, part in enumerate(answer.parts)
    ]
    return {
        **_head(answer.id, request, status, sampling),
        "completed_at": round(created_at(answer.id) + answer.step.latency_s) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": output,
        "usage": _usage(answer),
    }


async def events(
    request: ResponseRequest, pieces: AsyncGenerator[Piece], sampling: SamplingParams
) -> AsyncGenerator[bytes]:
    """Yield the events of a response."""
    number = -1

    def numbered(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)

    outline, current, begun = Outline(), None, 0
    async for piece in pieces:
        if number < 0:
            response = _head(piece.answer_id, request, "in_progress", sampling)
            yield numbered("response.created", response=response)
            yield numbered("response.in_progress", response=response)
        delta, answer = piece.delta, piece.answer
        part = None if delta is None else outline.add(delta)
        for added in outline.parts[begun:] if answer is None else outline.close()[begun:]:
            for kind, fields in _next_item(request, outline, current, added, piece.answer_id):
                yield numbered(kind, **fields)
            current, begun = added, begun + 1
        if delta is not None and part is not None and (new := delta.content or delta.reasoning or delta.arguments):
            yield numbered(_DELTAS[part.kind], **_where(outline, part, piece.answer_id), delta=new, **_extra(part))
        if answer is not None:
            whole = body(request, answer, sampling)
            assert current is not None  # a finished reply has at least one part
            for kind, fields in _closing(request, outline, current, piece.answer_id, whole["status"]):
                yield numbered(kind, **fields)
            yield numbered(f"response.{whole['status']}", response=whole)


Event = tuple[str, dict[str, Any]]
"""An event's type and its fields."""


def _next_item(
    request: ResponseRequest, outline: Outline, before: Part | None, part: Part, answer_id: str
) -> Iterator[Event]:
    """Yield the events that end the item of `before` and start that of `part`."""
    if before is not None:
        yield from _closing(request, outline, before, answer_id, "completed")
    where = _where(outline, part, answer_id)
    item = _item(request, Part(part.kind, part.place, part.name), answer_id, "in_progress")
    yield "response.output_item.added", {"output_index": where["output_index"], "item": item}
    if part.kind != "call":
        yield "response.content_part.added", {**where, "part": _content(part.kind, "")}


def _closing(request: ResponseRequest, outline: Outline, part: Part, answer_id: str, status: str) -> Iterator[Event]:
    """Yield the events that end the item of `part`."""
    where, item = _where(outline, part, answer_id), _item(request, part, answer_id, status)
    if part.kind == "call":
        yield "response.function_call_arguments.done", {**where, "name": item["name"], "arguments": part.text}
    else:
        kind = "response.output_text.done" if part.kind == "text" else "response.reasoning_text.done"
        yield kind, {**where, "text": part.text, **_extra(part)}
        yield "response.content_part.done", {**where, "part": _content(part.kind, part.text)}
    yield "response.output_item.done", {"output_index": where["output_index"], "item": item}


def _where(outline: Outline, part: Part, answer_id: str) -> dict[str, Any]:
    """Return the fields that locate an item and its content."""
    place = next(place for place, one in enumerate(outline.parts) if one is part)
    where = {"item_id": _item_id(part, answer_id), "output_index": place}
    return where if part.kind == "call" else {**where, "content_index": 0}


def _extra(part: Part) -> dict[str, Any]:
    return {"logprobs": []} if part.kind == "text" else {}


def _item_id(part: Part, answer_id: str) -> str:
    """Return the id of an item: the answer's id, numbered after the first of its kind."""
    numbered = f"{part.place:02d}" if part.place or part.kind == "call" else ""
    return f"{_IDS[part.kind]}_{answer_id}{numbered}"


def _item(request: ResponseRequest, part: Part, answer_id: str, status: str) -> dict[str, Any]:
    """Return an output item; one that is in progress has no content yet."""
    item: dict[str, Any] = {"id": _item_id(part, answer_id)}
    content = [] if status == "in_progress" else [_content(part.kind, part.text)]
    if part.kind == "call":
        # The client knows the function by its namespace and its own name.
        space, name = offer_of(request).namespaces.get(part.name, ("", part.name))
        own = {"call_id": call_id(answer_id, part.place), "name": name, "arguments": part.text}
        own |= {"namespace": space} if space else {}
        # Calls are always complete: only what follows them can be cut.
        return {**item, "type": "function_call", **own, "status": status.replace("incomplete", "completed")}
    if part.kind == "thought":
        return {**item, "type": "reasoning", "summary": [], "content": content, "status": status}
    return {**item, "type": "message", "role": "assistant", "content": content, "status": status}


def _content(kind: str, text: str) -> dict[str, Any]:
    if kind == "thought":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish_reason == "length" else "completed"


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, sampled = len(answer.step.prompt_ids), len(answer.step.response_ids)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": sampled,
        "output_tokens_details": {"reasoning_tokens": answer.thought_tokens},
        "total_tokens": prompt + sampled,
    }


def _head(answer_id: str, request: ResponseRequest, status: str, sampling: SamplingParams) -> dict[str, Any]:
    """Return the fields of a response that are known before it ends."""
    choice, text = request.tool_choice, request.text
    verbosity = {} if text is None or text.verbosity is None else {"verbosity": text.verbosity}
    answer_format = None if text is None else text.format
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": created_at(answer_id),
        "completed_at": None,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": request.model,
        "previous_response_id": request.previous_response_id,
        "instructions": request.instructions,
        "output": [],
        "tools": [
            tool.model_dump(include={"type", "name", "description", "parameters", "strict"})
            if isinstance(tool, FunctionTool)
            else tool.model_dump(exclude_unset=True, exclude_none=True)
            for tool in request.tools or ()
        ],
        "tool_choice": choice.model_dump(exclude_none=True) if isinstance(choice, NamedTool) else choice or "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": {"format": _format(answer_format or {"type": "text"}), **verbosity},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": 0,
        "reasoning": {"effort": None, "summary": None, **(request.reasoning or {})},
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "truncation": "disabled",
        "usage": None,
        "store": True,
        "background": False,
        "service_tier": "default",
        "metadata": request.metadata or {},
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
        "user": request.user,
    }


def _format(answer_format: dict[str, Any]) -> dict[str, Any]:
    """Return `text.format` with the fields that a response must have."""
    if answer_format.get("type") != "json_schema":
        return answer_format
    return {"description": None, "strict": False, **answer_format}
