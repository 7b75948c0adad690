"""OpenAI's responses: `POST /v1/responses`. A response can continue an earlier one of its trajectory."""

from __future__ import annotations

from typing import Any

from midstream.core.toolsets import tool_schema
from midstream.core.types import Message
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
from midstream.gateway.dialects.tools import HostedTool, Offer, ReplyRules, offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import answer_of
from midstream.gateway.sessions.call_request import CallRequest
from midstream.record.recorder import Call

_HAS_INSTRUCTIONS = "instructions"
"""Metadata key: whether the step's first message holds the instructions of its request."""


def parse(request: ResponseRequest, gateway: Gateway, active: ActiveTrajectory) -> tuple[CallRequest, ReplyRules]:
    """Return the call of `request`, and the rules of its reply."""
    request.model = gateway.model_name(request.model, active)
    messages: list[Message] = []
    if request.previous_response_id is not None:
        messages += _earlier(request.previous_response_id, gateway, active)
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    offered = offer_of(request)
    messages += _messages(request.input, offered)
    if not messages:
        raise ApiError(400, "the input is empty", param="input")
    tool_choice = request.tool_choice
    choice = (
        _visible(offered, tool_choice.namespace, tool_choice.name)
        if isinstance(tool_choice, NamedTool)
        else tool_choice or "auto"
    )
    rules = offered.rules(choice, _format(request), parallel=request.parallel_tool_calls is not False)
    if "message.output_text.logprobs" in (request.include or ()):
        raise ApiError(400, "responses have no log-probabilities; use chat completions", param="include")
    call = Call(
        role=request.model,
        messages=tuple(messages),
        tools=rules.declared,
        sampling=gateway.sampling(
            max_tokens=request.max_output_tokens, temperature=request.temperature, top_p=request.top_p
        ),
        metadata=step_metadata(
            request,
            user=request.user,
            metadata=request.metadata,
            safety_identifier=request.safety_identifier,
            **{_HAS_INSTRUCTIONS: bool(request.instructions)},
            left_out=gateway.metrics.count_dropped([tool.type for tool in offered.dropped]),
        ),
    )
    return CallRequest(call=call, model=request.model), rules


def offer_of(request: ResponseRequest) -> Offer:
    """Return the functions and hosted tools of a request, including those in namespaces."""
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
    """Return the name under which the model sees a function."""
    seen = [visible for visible, own in offered.namespaces.items() if own == (namespace, name)]
    return seen[0] if seen else name


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    """Return `text.format` in the form of chat completions."""
    answer_format = None if request.text is None else request.text.format
    if answer_format is None or answer_format.get("type") != "json_schema":
        return answer_format
    inner = {name: value for name, value in answer_format.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _earlier(response_id: str, gateway: Gateway, active: ActiveTrajectory) -> list[Message]:
    """Return the conversation up to and including an earlier response, without its instructions, which do not carry
    over."""
    for step in active.recorder.finished():
        if f"resp_{step.metadata.get('answer_id')}" == response_id:
            reply = answer_of(step, gateway.tokenizer).message()
            return [*step.messages[bool(step.metadata.get(_HAS_INSTRUCTIONS)) :], reply]
    raise ApiError(404, f"trajectory '{active.uid}' has no response '{response_id}'", param="previous_response_id")


def _messages(items: str | list[Item], offered: Offer) -> list[Message]:
    """Return the input as messages. The assistant's thoughts, texts and calls in a row are one message, including text
    after a call that has no result yet."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Message] = []
    assistant: Message | None = None
    for item in items:
        own = isinstance(item, FunctionCall | ReasoningItem) or (
            isinstance(item, InputMessage) and item.role == "assistant"
        )
        if not own:
            assistant = None
        elif (
            assistant is None
            or isinstance(item, ReasoningItem)
            or (isinstance(item, InputMessage) and assistant["content"] and "tool_calls" not in assistant)
        ):
            assistant = {"role": "assistant", "content": ""}
            messages.append(assistant)
        if isinstance(item, FunctionCall):
            assert assistant is not None
            called = {"name": _visible(offered, item.namespace, item.name), "arguments": item.arguments}
            assistant.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": called})
            assistant["content"] = assistant["content"] or None
        elif isinstance(item, ReasoningItem):
            assert assistant is not None
            assistant["reasoning_content"] = "".join(part.text for part in item.content or item.summary)
        elif isinstance(item, FunctionOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
        elif assistant is not None:
            text = _content(item.content)
            assistant["content"] = f"{assistant['content'] or ''}{text}" if isinstance(text, str) else text
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
