"""Anthropic's messages: `POST /v1/messages`. A message can continue an earlier one of its trajectory, as the tool
runner of Anthropic's client does."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from midstream.core.toolsets import tool_schema
from midstream.core.types import Message
from midstream.engines.formats import Delta
from midstream.gateway.dialects.anthropic_request import (
    CountRequest,
    ImageBlock,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    Thread,
    ToolParam,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from midstream.gateway.dialects.hints import step_metadata
from midstream.gateway.dialects.shared import event
from midstream.gateway.dialects.tools import HostedTool, Offer, ReplyRules, offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import Answer, Outline, Part, answer_of, call_id
from midstream.gateway.sessions.call_request import CallRequest, Piece
from midstream.record.recorder import Call

SIGNATURE = "unsigned"
"""Signature of every thought. Nothing is signed here, but clients treat a thought with an empty signature as broken and
send it back as text."""


def parse(request: MessagesRequest, gateway: Gateway, active: ActiveTrajectory) -> tuple[CallRequest, ReplyRules]:
    """Return the call of `request`, and the rules of its reply."""
    request.model = gateway.model_name(request.model, active)
    messages, offered = conversation(request)
    thread = request.thread
    if thread is not None and thread.type == "continue":
        before, offered = _earlier(request, thread, gateway, active)
        messages = [*before, *messages]
    rules = _rules(request, offered)
    call = Call(
        role=request.model,
        messages=tuple(messages),
        tools=rules.declared,
        sampling=gateway.sampling(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=tuple(request.stop_sequences or ()) or None,
        ),
        metadata=step_metadata(
            request,
            user=None if request.metadata is None else request.metadata.user_id,
            thread_tools=None if thread is None else list(offered.functions),
            left_out=gateway.metrics.count_dropped(
                [tool.type for tool in offered.dropped] + ["mcp"] * (request.mcp_servers is not None)
            ),
        ),
    )
    return CallRequest(call=call, model=request.model), rules


def prompt(request: CountRequest) -> Call:
    """Return the call whose prompt is counted."""
    messages, offered = conversation(request)
    return Call(messages=tuple(messages), tools=_rules(request, offered).declared, metadata=step_metadata(request))


def _rules(request: CountRequest, offered: Offer) -> ReplyRules:
    """Return the rules of `tool_choice` and `output_config.format`."""
    tool_choice = request.tool_choice
    choice = (
        "auto"
        if tool_choice is None
        else {"any": "required", "tool": tool_choice.name or ""}.get(tool_choice.type, tool_choice.type)
    )
    parallel = not (tool_choice is not None and tool_choice.disable_parallel_tool_use)
    return offered.rules(choice, _format(request), parallel=parallel)


def _earlier(
    request: MessagesRequest, thread: Thread, gateway: Gateway, active: ActiveTrajectory
) -> tuple[list[Message], Offer]:
    """Return the conversation up to and including the message that a thread continues, and the thread's tools. These
    are not always those of the earlier prompt, which has none if `tool_choice` was `none`."""
    if request.system is not None or request.tools is not None:
        raise ApiError(400, "system and tools are taken from the thread; leave them out to continue it", param="thread")
    for step in active.recorder.finished():
        if f"msg_{step.metadata.get('answer_id')}" == thread.previous_message_id:
            reply = answer_of(step, gateway.tokenizer).message()
            return [*step.messages, reply], Offer(tuple(step.metadata.get("thread_tools", ())))
    raise ApiError(
        404,
        f"trajectory '{active.uid}' has no message '{thread.previous_message_id}'",
        code="thread_not_found",
        param="thread.previous_message_id",
    )


def conversation(request: CountRequest) -> tuple[list[Message], Offer]:
    """Return messages and tools in the form of chat templates."""
    messages: list[Message] = []
    if request.system:
        system = request.system
        text = system if isinstance(system, str) else "\n".join(block.text for block in system)
        messages.append({"role": "system", "content": text})
    for turn in request.messages:
        messages += _plain(turn)
    if messages[-1]["role"] == "assistant":
        raise ApiError(
            400, "the last message is the assistant's; prefilled replies are not supported", param="messages"
        )
    tools = request.tools or ()
    return messages, offer(
        [
            ("", tool_schema(tool.name, tool.description, tool.input_schema))
            for tool in tools
            if isinstance(tool, ToolParam)
        ],
        [tool for tool in tools if isinstance(tool, HostedTool)],
    )


def _format(request: CountRequest) -> dict[str, Any] | None:
    """Return `output_config.format` in the form of chat completions."""
    answer_format = None if request.output_config is None else request.output_config.format
    if answer_format is None or answer_format.get("type") != "json_schema":
        return answer_format
    return {"type": "json_schema", "json_schema": {"schema": answer_format.get("schema")}}


def body(request: MessagesRequest, answer: Answer) -> dict[str, Any]:
    """Return a message; its content is in the order of sampling."""
    content = [_block(part, answer.id) for part in answer.parts]
    return {**_head(answer.id, request), "content": content, **_stopped(answer), "usage": _usage(answer)}


async def events(request: MessagesRequest, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[bytes]:
    """Yield the events of a message: one content block for each part of the reply."""
    outline, current, begun = Outline(), None, 0
    started = False
    async for piece in pieces:
        if not started:
            started = True
            usage = {**_NO_USAGE, "input_tokens": piece.prompt_tokens}
            message = {**_head(piece.answer_id, request), "content": [], **_STOPPED, "usage": usage}
            yield event({"type": "message_start", "message": message}, "message_start")
        delta, answer = piece.delta, piece.answer
        part = None if delta is None else outline.add(delta)
        for new in outline.parts[begun:] if answer is None else outline.close()[begun:]:
            for closing in _closing(current, begun - 1):
                yield closing
            empty = _block(Part(new.kind, new.place, new.name), piece.answer_id, signature="")
            yield event({"type": "content_block_start", "index": begun, "content_block": empty}, "content_block_start")
            current, begun = new, begun + 1
        if delta is not None and part is not None and (change := _change(part.kind, delta)):
            where = {"type": "content_block_delta", "index": begun - 1}
            yield event({**where, "delta": change}, "content_block_delta")
        if answer is not None:
            for closing in _closing(current, begun - 1):
                yield closing
            usage = {name: value for name, value in _usage(answer).items() if name not in _ONCE}
            yield event({"type": "message_delta", "delta": _stopped(answer), "usage": usage}, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


def _closing(part: Part | None, index: int) -> list[bytes]:
    """Return the events that end the block of `part`, if one is open."""
    ending: list[dict[str, Any]] = [] if part is None else [{"type": "content_block_stop", "index": index}]
    if part is not None and part.kind == "thought":
        signed = {"type": "signature_delta", "signature": SIGNATURE}
        ending.insert(0, {"type": "content_block_delta", "index": index, "delta": signed})
    return [event(one, one["type"]) for one in ending]


def _block(part: Part, answer_id: str, signature: str = SIGNATURE) -> dict[str, Any]:
    """Return a content block."""
    if part.kind == "text":
        return {"type": "text", "text": part.text, "citations": None}
    if part.kind == "thought":
        return {"type": "thinking", "thinking": part.text, "signature": signature}
    used = {"id": call_id(answer_id, part.place), "name": part.name, "input": json.loads(part.text or "{}")}
    return {"type": "tool_use", **used, "caller": {"type": "direct"}}


def _change(kind: str, delta: Delta) -> dict[str, Any] | None:
    if kind == "call":
        return {"type": "input_json_delta", "partial_json": delta.arguments} if delta.arguments else None
    if kind == "thought":
        return {"type": "thinking_delta", "thinking": delta.reasoning}
    return {"type": "text_delta", "text": delta.content}


_NO_USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"thinking_tokens": 0},
    "server_tool_use": None,
    "service_tier": "standard",
    "inference_geo": None,
}
_ONCE = frozenset({"cache_creation", "service_tier", "inference_geo"})
"""Usage fields that a stream has only in its first event."""
_STOPPED = {"stop_reason": None, "stop_sequence": None, "stop_details": None}


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, sampled = len(answer.step.prompt_ids), len(answer.step.response_ids)
    thought = {"output_tokens_details": {"thinking_tokens": answer.thought_tokens}}
    return {**_NO_USAGE, "input_tokens": prompt, "output_tokens": sampled, **thought}


def _head(answer_id: str, request: CountRequest) -> dict[str, Any]:
    own = {"id": f"msg_{answer_id}", "type": "message", "role": "assistant", "model": request.model}
    return {**own, "container": None}


def _stopped(answer: Answer) -> dict[str, Any]:
    """Return why the reply ended: `max_tokens` if it was cut, even after a call."""
    stops = answer.step.metadata.get("stop", ())
    matches = [(place, string) for string in stops if (place := answer.step.text.find(string)) >= 0]
    if answer.finish_reason == "length":
        return {**_STOPPED, "stop_reason": "max_tokens"}
    if answer.reply.tool_calls:
        return {**_STOPPED, "stop_reason": "tool_use"}
    if matches:
        return {**_STOPPED, "stop_reason": "stop_sequence", "stop_sequence": min(matches)[1]}
    return {**_STOPPED, "stop_reason": "end_turn"}


def _plain(turn: Turn) -> list[Message]:
    """Return one turn as messages. Tool results come before the user's text beside them."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    results: list[Message] = []
    parts: list[Any] = []
    calls: list[Any] = []
    thought = ""
    for block in turn.content:
        if isinstance(block, ToolResultBlock):
            content = _content(block.content)
            if block.is_error and isinstance(content, str):  # templates do not support it otherwise
                content = f"Error: {content}"
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": json.dumps(block.input)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ThinkingBlock):
            thought += block.thinking
        else:
            parts.append(block)
    if turn.role == "assistant":
        text = "".join(block.text for block in parts if isinstance(block, TextBlock))
        message: Message = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
        return [{**message, "reasoning_content": thought} if thought else message]
    if calls:
        raise ApiError(400, "a tool_use block can only be in an assistant's message", param="messages")
    return [*results, *([{"role": turn.role, "content": _content(parts)}] if parts or not results else [])]


def _content(blocks: str | list[Any] | None) -> Any:
    """Return a text if all blocks are text, else a list of parts."""
    if blocks is None or isinstance(blocks, str):
        return blocks or ""
    if all(isinstance(block, TextBlock) for block in blocks):
        return "\n".join(block.text for block in blocks)
    return [_part(block) for block in blocks]


def _part(block: TextBlock | ImageBlock) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    url = source.url if source.type == "url" else f"data:{source.media_type};base64,{source.data}"
    return {"type": "image_url", "image_url": {"url": url}}
