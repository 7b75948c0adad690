"""The tools a request offers: functions, which the model is shown, and tools that a provider would run, which are left
out because this gateway runs none. One that is demanded (`tool_choice`) and not there is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, Field

from midstream.core.types import Constraint, ToolSchema
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import ToolChoice, constrain
from midstream.gateway.dialects.arguments import is_nothing
from midstream.gateway.dialects.shared import Body
from midstream.gateway.http.errors import ApiError


class HostedTool(Body):
    """A tool that is no function (`web_search`, `code_interpreter`, ...): left out and counted."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(min_length=1, max_length=100)
    name: str | None = None


class HostedChoice(Body):
    """A `tool_choice` that demands something else than a function: refused."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(min_length=1, max_length=100)


def kind_of(*known: str, default: str) -> Callable[[Any], str]:
    """A discriminator by `type`: one of `known`, `hosted` for any other text, `default` where there is none."""

    def kind(value: Any) -> str:
        found = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        if found in known:
            return str(found)
        return "hosted" if isinstance(found, str) and found else default

    return kind


@dataclass(frozen=True, slots=True)
class Offer:
    """What a request offers its model: `functions`, and the types and names of what is `left_out`. `namespaces` has the
    namespace and the own name of each function that came in one, by the name the model sees."""

    functions: tuple[ToolSchema, ...] = ()
    left_out: tuple[HostedTool, ...] = ()
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def hold(
        self,
        tokenizer: ChatTokenizer,
        choice: ToolChoice | HostedChoice,
        response_format: Mapping[str, Any] | None,
        *,
        parallel: bool,
    ) -> tuple[tuple[ToolSchema, ...], Constraint | None]:
        """The tools to declare, and what holds the reply to `choice` and, where it may be no call, to
        `response_format`."""
        if isinstance(choice, HostedChoice):
            raise _refused(choice.type)
        response_format = None if is_nothing(response_format) else response_format
        names = [tool["function"]["name"] for tool in self.functions]
        if choice not in ("auto", "none", "required") and choice not in names:
            if any(choice in (tool.name, tool.type) for tool in self.left_out):
                raise _refused(choice)
            if names:
                there = ", ".join(names)
                raise ApiError(
                    400, f"tool_choice names the tool '{choice}', but there are only {there}", param="tool_choice"
                )
        if choice not in ("auto", "none") and not names:
            if self.left_out:
                raise _refused(", ".join(tool.type for tool in self.left_out))
            raise ApiError(400, "tool_choice asks for a tool, but there are no tools", param="tool_choice")
        return constrain(
            tokenizer.format,
            self.functions,
            tool_choice=choice,
            response_format=response_format,
            parallel=parallel,
        )


def offer(tools: Sequence[tuple[str, ToolSchema]], left_out: Sequence[HostedTool] = ()) -> Offer:
    """An offer of functions, each with the namespace it came in (empty: none). A function is seen under its own name;
    where two have the same one, those in a namespace are seen as `namespace__name`."""
    own = [schema["function"]["name"] for _, schema in tools]
    functions: list[ToolSchema] = []
    namespaces: dict[str, tuple[str, str]] = {}
    for namespace, schema in tools:
        name = schema["function"]["name"]
        if namespace:
            seen = name if own.count(name) == 1 else f"{namespace}__{name}"
            namespaces[seen] = (namespace, name)
            schema = {**schema, "function": {**schema["function"], "name": seen}}
        functions.append(schema)
    return Offer(tuple(functions), tuple(left_out), namespaces)


def _refused(demanded: str) -> ApiError:
    return ApiError(
        400,
        f"tool_choice demands '{demanded}', which this server does not have; offer a function for it",
        param="tool_choice",
    )
