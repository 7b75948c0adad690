"""OpenAI's responses: `POST /v1/responses`. A response can go on from an earlier one of its trajectory."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from midstream.core.types import Message
from midstream.gateway.answer import answer_of
from midstream.gateway.dialects.shared import Body, JsonObject, held, tool_schema
from midstream.gateway.errors import ApiError
from midstream.gateway.live import Live
from midstream.gateway.service import Ask, Gateway
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


_INSTRUCTED = "instructions"
"""In a step's metadata: whether its first message are the instructions of its request."""


def parse(request: ResponseRequest, gateway: Gateway, live: Live) -> Ask:
    """The call that `request` asks for."""
    request.model = gateway.model_name(request.model, live)
    messages: list[Message] = []
    if request.previous_response_id is not None:
        messages += _earlier(request.previous_response_id, gateway, live)
    if request.instructions:
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
    kept = {
        "user": request.user,
        "metadata": request.metadata,
        "safety_identifier": request.safety_identifier,
        _INSTRUCTED: bool(request.instructions),
    }
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


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    """`text.format` as chat completions word it."""
    asked = None if request.text is None else request.text.format
    if asked is None or asked.get("type") != "json_schema":
        return asked
    inner = {name: value for name, value in asked.items() if name != "type"}
    return {"type": "json_schema", "json_schema": inner}


def _earlier(response_id: str, gateway: Gateway, live: Live) -> list[Message]:
    """The conversation up to and with an earlier response, without its instructions, which do not carry over."""
    for step in live.recorder.finished():
        if f"resp_{step.metadata.get('answer_id')}" == response_id:
            said = answer_of(step, gateway.tokenizer).message()
            return [*step.messages[bool(step.metadata.get(_INSTRUCTED)) :], said]
    raise ApiError(
        404, f"trajectory '{live.uid}' has no response '{response_id}' to go on from", param="previous_response_id"
    )


def _messages(given: str | list[Item]) -> list[Message]:
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
            called = {"name": item.name, "arguments": item.arguments}
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
