"""OpenAI's responses: `POST /v1/responses`. A response can go on from an earlier one of its trajectory."""

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
from midstream.gateway.dialects.tools import HostedTool, Offer, offer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import answer_of
from midstream.gateway.sessions.asks import Ask
from midstream.record.recorder import Call

_INSTRUCTED = "instructions"
"""In a step's metadata: whether its first message are the instructions of its request."""


def parse(request: ResponseRequest, gateway: Gateway, live: ActiveTrajectory) -> Ask:
    """The call that `request` asks for."""
    request.model = gateway.model_name(request.model, live)
    messages: list[Message] = []
    if request.previous_response_id is not None:
        messages += _earlier(request.previous_response_id, gateway, live)
    if request.instructions:
        messages.insert(0, {"role": "system", "content": request.instructions})
    messages += _messages(request.input, offer_of(request))
    if not messages:
        raise ApiError(400, "there is no input", param="input")
    offered = offer_of(request)
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
            **{_INSTRUCTED: bool(request.instructions)},
            left_out=gateway.leave_out([tool.type for tool in offered.left_out]),
        ),
    )
    return Ask(call=call)


def offer_of(request: ResponseRequest) -> Offer:
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


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat completions word it."""
    asked = None if request.text is None else request.text.format
    if asked is None or asked.get("type") != "json_schema":
        return asked
    inner = {name: value for name, value in asked.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _earlier(response_id: str, gateway: Gateway, live: ActiveTrajectory) -> list[Message]:
    """The conversation up to and with an earlier response, without its instructions, which do not carry over."""
    for step in live.recorder.finished():
        if f"resp_{step.metadata.get('answer_id')}" == response_id:
            said = answer_of(step, gateway.tokenizer).message()
            return [*step.messages[bool(step.metadata.get(_INSTRUCTED)) :], said]
    raise ApiError(
        404, f"trajectory '{live.uid}' has no response '{response_id}' to go on from", param="previous_response_id"
    )


def _messages(given: str | list[Item], offered: Offer) -> list[Message]:
    """The input as messages. What an assistant thought, said and called in one breath is one message: also what it says
    after a call that has no result yet."""
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
            or (isinstance(item, InputMessage) and speaking["content"] and "tool_calls" not in speaking)
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
            said = _content(item.content)
            speaking["content"] = f"{speaking['content'] or ''}{said}" if isinstance(said, str) else said
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
