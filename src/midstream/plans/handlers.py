"""Handlers: the typed functions that nodes call, with versions and a declaration of their effects.

`effects` says what may be repeated when a worker died and the outcome of a call is unknown:

- `none`: reads only; repeated freely;
- `idempotent`: repeated under the same `ctx.key`, which the service on the other side uses to do it once;
- `steps`: every effect is inside `ctx.step`, so the function itself may run again;
- `once`: neither. The node is in doubt until `probe` or a person says whether it happened.

Handlers are the user's code. A handler must not run code that a model wrote: that belongs in `midstream.tools.sandbox`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from midstream.core.errors import ConfigError, nearest
from midstream.plans.errors import Permanent
from midstream.plans.plan import HANDLER

Effects = Literal["none", "idempotent", "steps", "once"]
EFFECTS = typing.get_args(Effects)
DEFAULT_TIMEOUT_S = 600.0
CONTEXT = "ctx"
"""Name of the parameter that receives the `Context`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found out about a call whose outcome is unknown. None for `happened` means that it cannot tell."""

    happened: bool | None
    output: Any = None


NOT_DONE = Finding(False)
UNKNOWN = Finding(None)


def done(output: Any = None) -> Finding:
    """The call had its effect, and this is what it would have returned."""
    return Finding(True, output)


@dataclass(frozen=True, eq=False)
class Handler:
    """A function that nodes call. Calling the `Handler` calls the plain function."""

    name: str
    version: int
    function: Callable[..., Any]
    effects: Effects
    timeout_s: float
    probe: Callable[..., Any] | None
    parameters: Mapping[str, TypeAdapter[Any]]
    """Types of the parameters, without `ctx`."""
    required: frozenset[str]
    returns: TypeAdapter[Any] | None
    """Type of the result; None when the function declares none."""
    takes_context: bool
    """Whether it has the parameter `ctx`."""

    @cached_property
    def full_name(self) -> str:
        return f"{self.name}@{self.version}"

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source without comments and layout; empty when there is no source."""
        return _fingerprint(self.function)

    @cached_property
    def parameter_schemas(self) -> dict[str, dict[str, Any]]:
        """JSON schemas of the parameters."""
        return {name: _schema(adapter, "validation") or {} for name, adapter in self.parameters.items()}

    @cached_property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON schema of the result; None when it is not declared."""
        return None if self.returns is None else _schema(self.returns, "serialization")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def parse(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return JSON arguments as the types of the parameters. Raises `Permanent` for what does not fit."""
        if unknown := args.keys() - self.parameters.keys():
            raise Permanent(f"{self.full_name} has no parameter '{sorted(unknown)[0]}'")
        if missing := self.required - args.keys():
            raise Permanent(f"{self.full_name} needs the argument '{sorted(missing)[0]}'")
        parsed: dict[str, Any] = {}
        for name, value in args.items():
            try:
                parsed[name] = self.parameters[name].validate_python(value)
            except ValidationError as error:
                raise Permanent(f"{self.full_name}, argument '{name}': {_first(error)}") from None
        return parsed

    def dump(self, output: Any) -> Any:
        """Return what the function returned as JSON data. Raises `Permanent` when it is not of the declared type."""
        if self.returns is None:
            return output
        try:
            return self.returns.dump_python(self.returns.validate_python(output), mode="json")
        except (ValidationError, ValueError) as error:
            message = _first(error) if isinstance(error, ValidationError) else str(error)
            raise Permanent(f"{self.full_name} returned what it does not declare: {message}") from None


def handler(
    name: str | None = None,
    *,
    version: int = 1,
    effects: Effects = "once",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    probe: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Handler]:
    """Declare a typed function, sync or async, as a handler: `@handler("book_flight", effects="idempotent")`.

    A parameter named `ctx` receives the `Context`. `probe` takes the same parameters and returns `done(output)`,
    `NOT_DONE` or `UNKNOWN`. A sync function runs in a thread, which a timeout cannot stop. Raises `ConfigError` for a
    function whose parameters have no types.
    """

    def declare(function: Callable[..., Any]) -> Handler:
        return make_handler(function, name, version, effects, timeout_s, probe)

    return declare


def make_handler(
    function: Callable[..., Any],
    name: str | None = None,
    version: int = 1,
    effects: Effects = "once",
    timeout_s: float = DEFAULT_TIMEOUT_S,
    probe: Callable[..., Any] | None = None,
) -> Handler:
    """`handler` as a function."""
    called: str = name or getattr(function, "__name__", type(function).__name__)
    matched = HANDLER.fullmatch(called)
    if matched is None or matched[2] is not None:
        raise ConfigError(f"'{called}' cannot be the name of a handler", "use letters, digits, _, - and .")
    if version < 1 or effects not in EFFECTS or not timeout_s > 0:
        raise ConfigError(
            f"handler '{called}': version must be at least 1, effects one of {', '.join(EFFECTS)}, timeout_s above 0"
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(f"handler '{called}': {error}", "its type hints must be importable") from None
    parameters: dict[str, TypeAdapter[Any]] = {}
    required: set[str] = set()
    for parameter, details in inspect.signature(function).parameters.items():
        if parameter == CONTEXT:
            continue
        if details.kind not in (details.POSITIONAL_OR_KEYWORD, details.KEYWORD_ONLY):
            raise ConfigError(f"handler '{called}': parameter '{parameter}' has no schema", "name each parameter")
        if parameter not in hints:
            raise ConfigError(f"handler '{called}': parameter '{parameter}' has no type hint")
        parameters[parameter] = _adapter(hints[parameter], called)
        if details.default is details.empty:
            required.add(parameter)
    declared = hints.get("return", inspect.Parameter.empty)
    returns = None if declared in (inspect.Parameter.empty, Any) else _adapter(declared, called)
    return Handler(
        called,
        version,
        function,
        effects,
        float(timeout_s),
        probe,
        parameters,
        frozenset(required),
        returns,
        CONTEXT in inspect.signature(function).parameters,
    )


Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the arguments a node has for an older version into those for a newer one."""


class Handlers:
    """The handlers a process has, by name and version. No registry is global: two of them never share anything."""

    def __init__(self, *sources: Handler | types.ModuleType | Iterable[Handler]) -> None:
        from midstream.plans.builtin import BUILT_IN

        self._known: dict[str, dict[int, Handler]] = {}
        self._migrations: dict[tuple[str, int], tuple[int, Migration]] = {}
        self.add(*BUILT_IN, *sources)

    def add(self, *sources: Handler | types.ModuleType | Iterable[Handler]) -> None:
        """Register handlers: single ones, collections, or all that a module declares. Raises `ConfigError` when two
        have the same name and version."""
        for source in sources:
            for one in _handlers_of(source):
                versions = self._known.setdefault(one.name, {})
                if versions.setdefault(one.version, one) is not one:
                    raise ConfigError(
                        f"two handlers are registered as '{one.full_name}'", "give one another version or name"
                    )

    def migrate(self, name: str, old: int, new: int, change: Migration = lambda args: args) -> None:
        """Declare how nodes of runs begun with version `old` continue with `new`: `change` turns their arguments."""
        self._migrations[(name, old)] = (new, change)

    def take_migrations(self, other: Handlers) -> None:
        """Declare the migrations of `other` here too."""
        self._migrations |= other._migrations

    def newest(self, name: str) -> Handler | None:
        versions = self._known.get(name)
        return versions[max(versions)] if versions else None

    def get(self, reference: str) -> Handler | None:
        """The handler of `name@version`, or the newest one of `name`; None when there is none."""
        name, _, version = reference.partition("@")
        return self._known.get(name, {}).get(int(version)) if version else self.newest(name)

    def migrated(self, reference: str) -> tuple[Handler, list[Migration]] | None:
        """The handler that declared migrations lead to from a version that is not registered, and the changes on the
        way."""
        name, _, version = reference.partition("@")
        at, changes = int(version or 0), list[Migration]()
        while (step := self._migrations.get((name, at))) is not None and len(changes) < 100:
            at, change = step
            changes.append(change)
            if at in self._known.get(name, {}):
                return self._known[name][at], changes
        return None

    def hint(self, reference: str) -> str:
        """What to say about a handler that is not there."""
        name, _, _ = reference.partition("@")
        if name in self._known:
            return "registered: " + ", ".join(f"{name}@{version}" for version in sorted(self._known[name]))
        return nearest(name, self._known)

    def __iter__(self) -> Iterator[Handler]:
        for versions in self._known.values():
            yield from versions.values()


def _handlers_of(source: Handler | types.ModuleType | Iterable[Handler]) -> Iterator[Handler]:
    if isinstance(source, Handler):
        yield source
    elif isinstance(source, types.ModuleType):
        yield from (value for value in vars(source).values() if isinstance(value, Handler))
    else:
        yield from source


def _adapter(hint: Any, name: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=None if _has_config(hint) else ConfigDict(allow_inf_nan=True))
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(
            f"handler '{name}': {str(error).partition(chr(10))[0]}", "use types that JSON can represent"
        ) from None


def _has_config(hint: Any) -> bool:
    """Whether pydantic takes the config from the type itself: models, dataclasses and typed dicts."""
    return isinstance(hint, type) and (
        hasattr(hint, "model_config") or hasattr(hint, "__dataclass_fields__") or typing.is_typeddict(hint)
    )


def _schema(adapter: TypeAdapter[Any], mode: Literal["validation", "serialization"]) -> dict[str, Any] | None:
    try:
        return adapter.json_schema(mode=mode)
    except PydanticUserError:
        return None


def _fingerprint(function: Callable[..., Any]) -> str:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _first(error: ValidationError) -> str:
    one = error.errors()[0]
    where = ".".join(map(str, one["loc"]))
    return f"{where}: {one['msg']}" if where else one["msg"]
