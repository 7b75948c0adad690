"""Tools and reply rules of a request. Functions are shown to the model. Hosted tools, which a provider would run, are
dropped because this gateway runs none; a `tool_choice` that requires one is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from midstream.core.types import Constraint, ToolSchema
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import ToolChoice, constrain
from midstream.engines.long_text import LONG, off_loop
from midstream.gateway.dialects.arguments import is_empty
from midstream.gateway.dialects.plain_json import is_larger_than
from midstream.gateway.dialects.shared import Body
from midstream.gateway.http.errors import ApiError

if TYPE_CHECKING:
    from midstream.gateway.sessions.call_request import CallRequest


class HostedTool(Body):
    """A tool that is not a function (`web_search`, `code_interpreter`, ...): dropped and counted."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(min_length=1, max_length=100)
    name: str | None = None


class HostedChoice(Body):
    """A `tool_choice` that requires something other than a function: refused."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(min_length=1, max_length=100)


def kind_of(*known: str, default: str) -> Callable[[Any], str]:
    """Return a discriminator by `type`: one of `known`, `hosted` for any other text, `default` if there is none."""

    def kind(value: Any) -> str:
        found = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
        if found in known:
            return str(found)
        return "hosted" if isinstance(found, str) and found else default

    return kind


@dataclass(frozen=True, slots=True)
class ReplyRules:
    """What a reply may be: calls of `functions` as `choice` says, or an answer in `response_format`."""

    functions: tuple[ToolSchema, ...]
    choice: ToolChoice
    response_format: Mapping[str, Any] | None
    parallel: bool

    @property
    def declared(self) -> tuple[ToolSchema, ...]:
        """The functions shown to the model."""
        return () if self.choice == "none" else self.functions

    async def applied_to(self, request: CallRequest, tokenizer: ChatTokenizer) -> CallRequest:
        """Return `request` with the constraint that enforces the rules. The grammar of a large schema is built off the
        event loop. Raises `Unsupported` for rules that cannot be enforced."""
        constrains = self.choice not in ("auto", "none") or self.response_format is not None
        if constrains and is_larger_than([self.declared, self.response_format], LONG):
            constraint = await off_loop(self._constraint, tokenizer)
        else:
            constraint = self._constraint(tokenizer)
        return replace(request, call=replace(request.call, constraint=constraint))

    def _constraint(self, tokenizer: ChatTokenizer) -> Constraint | None:
        _, constraint = constrain(
            tokenizer.format,
            self.functions,
            tool_choice=self.choice,
            response_format=self.response_format,
            parallel=self.parallel,
        )
        return constraint


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of a request: `functions`, and the hosted tools that are `dropped`. `namespaces` maps the name of a
    function as the model sees it to its namespace and its own name."""

    functions: tuple[ToolSchema, ...] = ()
    dropped: tuple[HostedTool, ...] = ()
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])

    def rules(
        self, choice: ToolChoice | HostedChoice, response_format: Mapping[str, Any] | None, *, parallel: bool
    ) -> ReplyRules:
        """Return the rules of a request. Raises `ApiError` 400 for a `tool_choice` that cannot be met."""
        if isinstance(choice, HostedChoice):
            raise _not_available(choice.type)
        names = [tool["function"]["name"] for tool in self.functions]
        if choice not in ("auto", "required", "none") and choice not in names:
            if any(choice in (tool.name, tool.type) for tool in self.dropped):
                raise _not_available(choice)
            if names:
                known = ", ".join(names)
                raise ApiError(
                    400, f"tool_choice names the tool '{choice}'; the tools are {known}", param="tool_choice"
                )
        if choice not in ("auto", "none") and not names:
            if self.dropped:
                raise _not_available(", ".join(tool.type for tool in self.dropped))
            raise ApiError(400, "tool_choice requires a tool, but the request has no tools", param="tool_choice")
        return ReplyRules(self.functions, choice, None if is_empty(response_format) else response_format, parallel)


def offer(tools: Sequence[tuple[str, ToolSchema]], dropped: Sequence[HostedTool] = ()) -> Offer:
    """Return an offer of functions, each given with its namespace (empty: none). The model sees a function under its
    own name; if two share a name, those in a namespace are shown as `namespace__name`."""
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
    return Offer(tuple(functions), tuple(dropped), namespaces)


def _not_available(required: str) -> ApiError:
    return ApiError(
        400,
        f"tool_choice requires '{required}', which is not available on this server; offer a function for it",
        param="tool_choice",
    )
