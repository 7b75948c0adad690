"""What the dialects share: strict bodies, server-sent events, and the parts of a call they all can name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict

from midstream.core.sampling import SamplingParams
from midstream.core.types import ToolSchema
from midstream.engines.base import Constraint
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import ToolChoice, response_constraint
from midstream.gateway.errors import ApiError

if TYPE_CHECKING:
    from midstream.gateway.service import Gateway

DEEPEST = 64
"""Lists and objects within each other in JSON of no fixed form."""


class Body(BaseModel):
    """A request body. An argument that is not in it is an error: nothing is ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _plain_json(value: Any) -> Any:
    """`value`, when everybody who reads it later can: not too deep, Unicode, and no number that JSON does not have."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*cast("dict[str, Any]", item).keys(), *cast("dict[str, Any]", item).values()]
            elif isinstance(item, list):
                inner += cast("list[Any]", item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is not a number that JSON has")
            elif isinstance(item, str) and not item.isascii():
                item.encode()  # half of a surrogate pair is a ValueError
        if not inner:
            return value
        level = inner
    raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")


AnyJson = Annotated[Any, AfterValidator(_plain_json)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_plain_json)]
"""JSON of no fixed form."""


class Function(Body):
    """A function an agent offers."""

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class SamplingArguments(Body):
    """What a request may say of sampling, but for how many tokens: the APIs differ in how they call that."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None

    def sampling(self, gateway: Gateway, max_tokens: int | None) -> SamplingParams:
        """Sampling parameters, those left out by the gateway's defaults."""
        asked = {name: getattr(self, name) for name in SamplingArguments.model_fields if name != "stop"}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return gateway.sampling(max_tokens=max_tokens, stop=stop or None, **asked)


def tool_schema(name: str, description: str | None, parameters: dict[str, Any] | None) -> ToolSchema:
    """A declaration as chat templates take it."""
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def held(
    tokenizer: ChatTokenizer,
    tools: Sequence[ToolSchema],
    choice: ToolChoice,
    response_format: Mapping[str, Any] | None,
    *,
    parallel: bool,
) -> tuple[tuple[ToolSchema, ...], Constraint | None]:
    """The tools to declare, and what holds the reply to `choice` and, where it may be no call, to `response_format`."""
    names = [tool["function"]["name"] for tool in tools]
    if choice == "none":
        return (), response_constraint(tokenizer.format, response_format)
    if choice != "auto" and not tools:
        raise ApiError(400, "tool_choice asks for a tool, but there are no tools", param="tool_choice")
    if choice not in ("auto", "required") and choice not in names:
        raise ApiError(
            400, f"tool_choice names the tool '{choice}', but there are only {', '.join(names)}", param="tool_choice"
        )
    calls = tokenizer.format.constraint(tools, choice, parallel)
    said = response_constraint(tokenizer.format, response_format, tools, parallel)
    return tuple(tools), calls or said


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name is not None else ""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"{head}data: {text}\n\n".encode(errors="backslashreplace")
