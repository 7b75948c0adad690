"""`@tool`: turns a typed function into a `Tool` with a name, a description and a JSON schema of its parameters.

The schema comes from the type hints (pydantic's rules) and the descriptions come from the docstring, so nothing is
declared twice.
Arguments are validated strictly: numbers are not accepted as text, nor text as numbers.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, create_model

from midstream.core.errors import ConfigError
from midstream.core.toolsets import DEFAULT_TIMEOUT_S, ToolExample, ToolPolicy, ToolSpec

P = ParamSpec("P")
R = TypeVar("R")

TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Tool(ToolSpec, Generic[P, R]):
    """A function that an agent may call. Calling the `Tool` calls the plain function.

    `description` is the docstring without its section on arguments."""

    function: Callable[P, R]
    arguments_model: type[BaseModel] = field(repr=False)
    """The pydantic model that validates arguments; its aliases are the parameter names."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    @property
    def signature(self) -> str:
        """Return the call as a prompt shows it, with Python types: `search(query: str)`."""
        hints = typing.get_type_hints(self.function)
        parts: list[str] = []
        for name, parameter in inspect.signature(self.function).parameters.items():
            text = f"{name}: {_type_name(hints[name])}"
            parts.append(text if parameter.default is parameter.empty else f"{text} = {parameter.default!r}")
        return f"{self.name}({', '.join(parts)})"


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retries: int = 0,
    backoff_s: float = 0.5,
    idempotent: bool = False,
    cost: float = 0.0,
    approval: bool = False,
    fallback: Sequence[str] = (),
    returns: str = "",
    limits: Sequence[str] = (),
    best_practices: Sequence[str] = (),
    examples: Sequence[Mapping[str, Any]] = (),
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retries: int = 0,
    backoff_s: float = 0.5,
    idempotent: bool = False,
    cost: float = 0.0,
    approval: bool = False,
    fallback: Sequence[str] = (),
    returns: str = "",
    limits: Sequence[str] = (),
    best_practices: Sequence[str] = (),
    examples: Sequence[Mapping[str, Any]] = (),
) -> Any:
    """Create a tool from a typed function, sync or async: `@tool`, or `@tool(name="lookup", timeout_s=2, retries=2)`.

    `timeout_s` to `fallback` are the policy of its calls (`ToolPolicy`), `returns` to `examples` its card; an example
    is the arguments of a call. Every parameter needs a type hint that JSON can represent; `*args` and `**kwargs` have
    no schema and are refused. Raises `ConfigError` for a function or a policy that cannot be a tool's.
    """
    declared = {
        "name": name,
        "timeout_s": timeout_s,
        "policy": ToolPolicy(
            retries=retries,
            backoff_s=backoff_s,
            idempotent=idempotent,
            cost=cost,
            approval=approval,
            fallback=tuple(fallback),
        ),
        "returns": returns,
        "limits": tuple(limits),
        "best_practices": tuple(best_practices),
        "examples": tuple(ToolExample(arguments=arguments) for arguments in examples),
    }
    if function is None:
        return lambda wrapped: _declare(wrapped, **declared)
    return _declare(function, **declared)


def _declare(
    function: Callable[..., Any], *, name: str | None, timeout_s: float, policy: ToolPolicy, **card: Any
) -> Tool[..., Any]:
    name = name or str(getattr(function, "__name__", type(function).__name__))
    if not TOOL_NAME.fullmatch(name):
        raise ConfigError(
            f"'{name}' cannot be the name of a tool", "use letters, digits, _ and -; give one with @tool(name=...)"
        )
    if not timeout_s > 0:
        raise ConfigError(f"tool '{name}': timeout_s must be above 0, not {timeout_s}")
    for setting in ("retries", "backoff_s", "cost"):
        if not getattr(policy, setting) >= 0:
            raise ConfigError(f"tool '{name}': {setting} must not be negative, not {getattr(policy, setting)}")
    if name in policy.fallback:
        raise ConfigError(f"tool '{name}' is named as its own fallback", "name another tool")
    description, explained = _read_docstring(inspect.getdoc(function) or "")
    model = _arguments_model(function, name, explained)
    schema = model.model_json_schema(by_alias=True)
    # Field names are internal, so the titles that pydantic derives from them mean nothing to a model.
    schema.pop("title", None)
    schema.setdefault("properties", {})
    for parameter in schema["properties"].values():
        parameter.pop("title", None)
    return Tool(
        name=name,
        description=description,
        parameters=schema,
        function=function,
        timeout_s=float(timeout_s),
        policy=policy,
        arguments_model=model,
        **card,
    )


def _arguments_model(function: Callable[..., Any], name: str, explained: Mapping[str, str]) -> type[BaseModel]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"tool '{name}': {error}", "type hints must be importable where the tool is defined"
        ) from None
    fields: dict[str, Any] = {}
    for position, (parameter, details) in enumerate(inspect.signature(function).parameters.items()):
        if details.kind not in (details.POSITIONAL_OR_KEYWORD, details.KEYWORD_ONLY):
            raise ConfigError(
                f"tool '{name}': parameter '{parameter}' has no schema",
                "replace *args, **kwargs and / by named parameters",
            )
        if parameter not in hints:
            raise ConfigError(
                f"tool '{name}': parameter '{parameter}' has no type hint", f"write {parameter}: str, for example"
            )
        default = ... if details.default is details.empty else details.default
        # Internal field names, with the parameter's name as alias: pydantic reserves some (`json`, `_x`, `model_...`).
        fields[f"p{position}"] = (
            hints[parameter],
            Field(default, alias=parameter, description=explained.get(parameter)),
        )
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        return create_model(name, __config__=config, **fields)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"tool '{name}': {reason}", "use str, int, float, bool, lists, dicts or pydantic models"
        ) from None


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text without the `Args:` section, and that section's descriptions by parameter."""
    lines, explained, kept = text.splitlines(), dict[str, str](), list[str]()
    inside, current = False, ""
    for line in lines:
        if re.fullmatch(r"(Args|Arguments|Parameters):\s*", line):
            inside = True
            continue
        if inside and line and not line.startswith(" "):
            inside = False
        if not inside:
            kept.append(line)
        elif match := re.match(r" {1,4}(\w+)(?: \([^)]*\))?: *(.*)", line):
            current = match[1]
            explained[current] = match[2].strip()
        elif current and line.strip():
            explained[current] += " " + line.strip()
    return "\n".join(kept).strip(), explained


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
