"""The body of `POST /v1/messages`, with the treatment of each argument."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from midstream.gateway.dialects.arguments import Argument, Hint, Ignored, Offered, Refused, Treatment
from midstream.gateway.dialects.plain_json import JsonObject
from midstream.gateway.dialects.shared import Body, TopK
from midstream.gateway.dialects.tools import HostedTool, kind_of


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""
    citations: Ignored = None
    """Chat templates do not support them."""


class Source(Body):
    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class ImageBlock(Body):
    type: Literal["image"]
    source: Source
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonObject
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""
    caller: Ignored = None
    """Only the model calls tools."""
    toolset_name: Ignored = None
    """Only the model calls tools."""


Shown = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[Shown] | None = None
    is_error: bool | None = None
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""
    toolset_name: Ignored = None
    """Only the model calls tools."""


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


Block = Annotated[TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock, Field(discriminator="type")]


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolParam(Body):
    """A function."""

    name: str
    description: str | None = None
    input_schema: JsonObject
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""
    defer_loading: Ignored = None
    """All functions are shown at once: there is no tool search."""
    allowed_callers: Ignored = None
    """Only the model calls tools."""
    eager_input_streaming: Ignored = None
    """Arguments are streamed as they are sampled."""
    input_examples: Ignored = None
    """Chat templates do not support them."""


AnyTool = Annotated[
    Annotated[ToolParam, Tag("custom")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(kind_of("custom", default="custom")),
]


class ToolChoiceParam(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Body):
    user_id: str | None = None


class OutputConfig(Body):
    format: dict[str, Any] | None = None
    """`{"type": "json_schema", "schema": {...}}`"""
    effort: Hint = None
    """Passed to the chat template as `reasoning_effort` (and as `enable_thinking`: false for `none` and `minimal`)."""
    task_budget: Hint = None
    """Chat templates do not support it."""


class ContextManagement(Body):
    edits: list[JsonObject] | None = None
    """Edits that keep everything have no effect; others would hide history and are refused."""

    @field_validator("edits")
    @classmethod
    def _keep_all(cls, edits: list[JsonObject] | None) -> list[JsonObject] | None:
        for edit in edits or ():
            if edit.get("keep") != "all":
                raise ValueError(f"'{edit.get('type')}' would hide history from the model; shorten the conversation")
        return edits


class Thread(Body):
    """`create` has no effect: every message can be continued. `continue` sends only new messages; the earlier messages,
    the system prompt and the tools are taken from the earlier message's call."""

    type: Literal["create", "continue"]
    previous_message_id: str | None = None


class CountRequest(Body):
    """Counts the tokens of a prompt."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[AnyTool] | None = None
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfig | None = None
    thinking: Hint = None
    """`type` is passed to the chat template as `enable_thinking`, `budget_tokens` as `thinking_budget`."""
    context_management: ContextManagement | None = None
    cache_control: Ignored = None
    """Prompts are cached by trajectory."""
    mcp_servers: Offered = None
    """The gateway calls no MCP servers."""


class MessagesRequest(CountRequest):
    """Creates a message."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: TopK = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    """Kept with the step."""
    thread: Thread | None = None
    service_tier: Ignored = None
    """There is one tier."""
    speed: Ignored = None
    """There is one speed."""
    inference_geo: Ignored = None
    """The model runs where the gateway's engine does."""
    diagnostics: Ignored = None
    """There are no diagnostics."""
    billing_policy: Ignored = None
    """Nothing is billed."""
    user_profile_id: Ignored = None
    """There are no profiles."""
    workspace_id: Ignored = None
    """There is one workspace."""
    fallbacks: Annotated[Any, Argument(Treatment.REFUSED, "one policy answers")] = None
    """One policy answers."""
    fallback_credit_token: Ignored = None
    """Nothing is billed."""
    container: Refused = None
    """There are no containers."""
    compaction: Annotated[Any, Argument(Treatment.REFUSED, "shorten the conversation")] = None
    """The history is never compacted."""
    prefill: Refused = None
    """The chat template determines how replies begin."""
