"""The body of `POST /v1/responses`, with the treatment of each argument."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from midstream.gateway.dialects.arguments import Argument, Hint, Ignored, Refused, Treatment
from midstream.gateway.dialects.plain_json import JsonObject
from midstream.gateway.dialects.shared import Body
from midstream.gateway.dialects.tools import HostedChoice, HostedTool, kind_of


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
    namespace: str | None = None
    """The namespace in which the function was declared."""
    caller: Ignored = None
    """Only the model calls tools."""


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Shown]
    id: str | None = None
    status: str | None = None
    caller: Ignored = None
    """Only the model calls tools."""


class ReasoningText(Body):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: Ignored = None
    """Reasoning is not encrypted."""
    status: str | None = None


def _type_of(item: Any) -> str:
    """Return the type of an input item; messages may omit it."""
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
    defer_loading: Ignored = None
    """All functions are shown at once: there is no tool search."""
    allowed_callers: Ignored = None
    """Only the model calls tools."""
    output_schema: Ignored = None
    """Chat templates do not support it."""


class NamespaceTool(Body):
    """Functions of one namespace. The model sees each under its own name, unless two share it."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: list[FunctionOrHosted]


class NamedTool(Body):
    type: Literal["function"]
    name: str
    namespace: str | None = None


FunctionOrHosted = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of("function", default="function")),
]
AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of("function", "namespace", default="function")),
]
AnyChoice = Annotated[
    Annotated[NamedTool, Tag("function")] | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(kind_of("function", default="function")),
]


class TextOptions(Body):
    format: JsonObject | None = None
    verbosity: Hint = None
    """Passed to the chat template as `verbosity`."""


class ResponseStreamOptions(Body):
    include_obfuscation: Ignored = None
    """Streams are not padded."""


class ResponseRequest(Body):
    """Creates a response."""

    model: str | None = None
    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[AnyTool] | None = None
    tool_choice: Literal["auto", "none", "required"] | AnyChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: dict[str, str] | None = None
    """Kept with the step."""
    user: str | None = None
    """Kept with the step."""
    safety_identifier: str | None = None
    """Kept with the step."""
    reasoning: Hint = None
    """`effort` is passed to the chat template as `reasoning_effort` (and as `enable_thinking`: false for `none` and
    `minimal`). Thoughts are returned in full, so `summary` has no effect."""
    include: list[str] | None = None
    """Reasoning is always returned, and there are no hosted tools whose results could be included.
    `message.output_text.logprobs` is refused: chat completions return log-probabilities."""
    client_metadata: Ignored = None
    """For the client's own use."""
    store: Ignored = None
    """Every call is stored."""
    service_tier: Ignored = None
    """There is one tier."""
    prompt_cache_key: Ignored = None
    """Prompts are cached by trajectory."""
    prompt_cache_options: Ignored = None
    """Prompts are cached by trajectory."""
    prompt_cache_retention: Ignored = None
    """Prompts are cached by trajectory."""
    max_tool_calls: Ignored = None
    """It limits calls of hosted tools, and there are none."""
    background_options: Ignored = None
    """Belongs to `background`."""
    access_programs: Ignored = None
    """There are no access programs."""
    truncation: Annotated[Any, Argument(Treatment.REFUSED, "shorten the conversation")] = None
    """A prompt is never cut."""
    top_logprobs: Annotated[Literal[0] | None, Argument(Treatment.REFUSED, "use chat completions")] = None
    """Chat completions return log-probabilities."""
    background: Refused = None
    """Responses are not created in the background."""
    conversation: Annotated[Any, Argument(Treatment.REFUSED, "use previous_response_id")] = None
    """There are no named conversations."""
    context_management: Annotated[Any, Argument(Treatment.REFUSED, "shorten the conversation")] = None
    """The history is never compacted."""
    prompt: Annotated[Any, Argument(Treatment.REFUSED, "send instructions and input")] = None
    """There are no named prompts."""
    moderation: Refused = None
    """Nothing is moderated."""
    image: Refused = None
    """Replies are text."""
