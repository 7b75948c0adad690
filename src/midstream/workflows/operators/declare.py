"""`@operator`: turns a typed async function into an operator that workflows can call.

The first parameter is the `OperatorContext`; the others, with their type hints, are the operator's arguments, and the
return hint (text, or a TypedDict) is the record it returns. Text becomes the record `{"response": text}`. The same
declaration serves the checker, the JSON schema shown to models, and the runner's check of arguments.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from midstream.core.errors import ConfigError, nearest
from midstream.workflows.value_types import TEXT, ValueType, fits, json_schema, record, type_of_hint

OPERATOR_NAME = re.compile(r"[A-Z][A-Za-z0-9]{0,39}")
MAX_REPEATS = 10
"""Most model calls of one operator call."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an operator."""

    name: str
    type: ValueType
    required: bool
    default: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """An operator: name, schema, and the function behind it.

    `calls` is the number of model calls of one call in the worst case, or the name of the parameter that sets it."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    output: ValueType
    calls: int | str
    function: Callable[..., Awaitable[Any]]
    needs: tuple[str, ...] = ()
    """What the runner must have: `sandbox`, `tools`, `search`."""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((one for one in self.parameters if one.name == name), None)

    def most_calls(self, arguments: Mapping[str, Any]) -> int:
        """Model calls of one call in the worst case, with these constant arguments."""
        if isinstance(self.calls, int):
            return self.calls
        value = arguments.get(self.calls)
        parameter = self.parameter(self.calls)
        value = parameter.default if value is None and parameter is not None else value
        return value if isinstance(value, int) and not isinstance(value, bool) else MAX_REPEATS

    @property
    def signature(self) -> str:
        """The call as a prompt shows it: `Review(problem: text, solution: text) -> {review_result: boolean, ...}`."""
        parts = [f"{one.name}: {one.type}" + ("" if one.required else f" = {one.default!r}") for one in self.parameters]
        fields = ", ".join(f"{name}: {of}" for name, of in self.output.fields)
        return f"{self.name}({', '.join(parts)}) -> {{{fields}}}"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schemas of the arguments (`parameters`) and of the record (`returns`)."""
        parameters = {
            "type": "object",
            "properties": {one.name: json_schema(one.type) for one in self.parameters},
            "required": [one.name for one in self.parameters if one.required],
            "additionalProperties": False,
        }
        return {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
            "returns": json_schema(self.output),
        }


def operator(
    *, name: str | None = None, calls: int | str = 1, needs: tuple[str, ...] = ()
) -> Callable[[Callable[..., Awaitable[Any]]], Operator]:
    """Create an operator from an async function: `@operator(calls=1)`. Raises `ConfigError` for one that has no
    schema."""

    def declare(function: Callable[..., Awaitable[Any]]) -> Operator:
        return _declared(function, name or _camel(function.__name__), calls, needs)

    return declare


def _declared(function: Callable[..., Awaitable[Any]], name: str, calls: int | str, needs: tuple[str, ...]) -> Operator:
    where = f"operator '{name}'"
    if not OPERATOR_NAME.fullmatch(name):
        raise ConfigError(f"{where}: not a name for an operator", "use letters and digits, starting with a capital")
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: its function is not async", "declare it with async def")
    try:
        hints = typing.get_type_hints(function)
    except NameError as error:
        raise ConfigError(f"{where}: {error}", "type hints must be importable where it is defined") from None
    rest = list(inspect.signature(function).parameters.values())[1:]
    parameters: list[Parameter] = []
    for one in rest:
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) or one.name not in hints:
            raise ConfigError(f"{where}: a parameter has no schema", "give named parameters with type hints")
        required = one.default is one.empty
        of = type_of_hint(hints[one.name], f"{where}, parameter '{one.name}'")
        parameters.append(Parameter(one.name, of, required, None if required else one.default))
    if "return" not in hints:
        raise ConfigError(f"{where}: no return hint", "return str, or a TypedDict")
    output = type_of_hint(hints["return"], f"{where}, return value")
    if output == TEXT:
        output = record({"response": TEXT})
    if output.kind != "record" or output.optional:
        raise ConfigError(f"{where}: returns {output}", "return str, or a TypedDict")
    if isinstance(calls, str) and calls not in {one.name for one in parameters}:
        raise ConfigError(f"{where}: calls='{calls}' is not one of its parameters")
    description = inspect.cleandoc(function.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return Operator(name, description, tuple(parameters), output, calls, function, needs)


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def argument_problem(operator: Operator, name: str, of: ValueType) -> str:
    """What is wrong with passing a value of type `of` as `name`; "" when it fits."""
    parameter = operator.parameter(name)
    if parameter is None:
        known = ", ".join(f"{one.name}: {one.type}" for one in operator.parameters)
        return f"{operator.name} has no argument '{name}'; it takes {known or 'no arguments'}"
    if not fits(of, parameter.type):
        return f"argument '{name}' of {operator.name} must be {parameter.type}, not {of}"
    return ""


class OperatorSet(Mapping[str, Operator]):
    """Operators by name."""

    def __init__(self, operators: tuple[Operator, ...] | list[Operator]) -> None:
        self._by_name = {one.name: one for one in operators}
        if len(self._by_name) < len(operators):
            names = [one.name for one in operators]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two operators are named '{twice}'", "give one of them another name")

    def __getitem__(self, name: str) -> Operator:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def only(self, names: tuple[str, ...] | list[str]) -> OperatorSet:
        """A set with only these. Raises `ConfigError` for an unknown name."""
        for name in names:
            if name not in self._by_name:
                raise ConfigError(f"no operator '{name}'", nearest(name, self._by_name))
        return OperatorSet([self._by_name[name] for name in names])

    def offered(self, provided: Collection[str]) -> OperatorSet:
        """A set without the operators that need what is not in `provided`."""
        return OperatorSet([one for one in self._by_name.values() if set(one.needs) <= set(provided)])

    def with_(self, *operators: Operator) -> OperatorSet:
        """A set with these added."""
        return OperatorSet([*self._by_name.values(), *operators])

    def cards(self) -> str:
        """One line an operator, for a prompt."""
        return "\n".join(f"{one.signature}: {one.description}" for one in self._by_name.values())
