"""Loads tools by name: built-in ones, or a user's own as `package.module:attribute`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from midstream.core.config import Config, parse_config
from midstream.core.errors import ConfigError, nearest
from midstream.core.toolsets import Toolset
from midstream.tools.declare import Tool, tool
from midstream.tools.toolbox import ToolsetFactory

BUILT_IN = {
    "calculator": "midstream.tools.calculator:calculator",
    "convert_units": "midstream.tools.units:convert_units",
    "echo": "midstream.tools.echo:echo",
    "generalist": "midstream.tools.generalist:generalist",
    "multiply": "midstream.tools.multiply:multiply",
    "python": "midstream.tools.python:python",
    "read_file": "midstream.tools.read_file:read_file",
    "search": "midstream.tools.search:configured_search",
    "sql": "midstream.tools.sql:sql",
    "web_fetch": "midstream.tools.web.fetch:web_fetch",
    "web_search": "midstream.tools.web.search:web_search",
    "wikipedia": "midstream.tools.web.wikipedia:wikipedia",
}


@dataclass(frozen=True)
class ToolKind:
    """A tool with settings or a lifetime. `make` creates the toolset of one trajectory from the settings."""

    settings: type[Config]
    make: Callable[[Any], Toolset]
    default: Tool[..., Any] | None = None
    """The function tool used when no settings are given."""


@dataclass(frozen=True)
class LoadedTools:
    """Function tools, and factories of toolsets."""

    tools: Sequence[Tool[..., Any]] = ()
    toolsets: Sequence[ToolsetFactory] = field(default_factory=list)


def load_tools(names: Sequence[str]) -> list[Tool[..., Any]]:
    """Load function tools by name. Raises `ConfigError` for a name that is not one of them."""
    loaded = load(names)
    if loaded.toolsets:
        opened = [spec.name for factory in loaded.toolsets for spec in factory.specs]
        raise ConfigError(f"not plain functions: {', '.join(opened)}", "name them in flow.tools, or use `load`")
    return list(loaded.tools)


def load(
    names: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    more: Mapping[str, str] | None = None,
) -> LoadedTools:
    """Load the named tools with their `settings`. `more` names built-in tools of other packages.

    `package.module:attribute` is a `Tool`, a typed function to convert to one, a `ToolKind`, or a class with the
    methods of `Toolset`. Raises `ConfigError` for anything else, and for wrong settings."""
    settings, known = settings or {}, {**BUILT_IN, **(more or {})}
    for name in settings:
        if name not in names:
            raise ConfigError(f"there are settings for the tool '{name}', which is not used", nearest(name, names))
    tools: list[Tool[..., Any]] = []
    toolsets: list[ToolsetFactory] = []
    for name in names:
        found = _find(name, known)
        if isinstance(found, ToolKind):
            if found.default is None or name in settings:
                toolsets.append(_factory(found, settings.get(name, {}), name))
            else:
                tools.append(found.default)
        elif name in settings:
            raise ConfigError(f"the tool '{name}' has no settings", "remove them")
        elif _is_toolset(found):
            toolsets.append(ToolsetFactory(found, ()))
        else:
            tools.append(found if isinstance(found, Tool) else tool(found))
    return LoadedTools(tools, toolsets)


def _factory(kind: ToolKind, given: Mapping[str, Any], name: str) -> ToolsetFactory:
    settings = parse_config(kind.settings, dict(given), f"the settings of the tool '{name}'")
    return ToolsetFactory(lambda: kind.make(settings), getattr(kind.make(settings), "specs", ()))


def _is_toolset(found: Any) -> bool:
    return isinstance(found, type) and all(callable(getattr(found, name, None)) for name in ("open", "list", "call"))


def _find(name: str, known: Mapping[str, str]) -> Any:
    module_name, colon, attribute = known.get(name, name).partition(":")
    if not colon:
        hint = f"{nearest(name, known)} (your own: package.module:attribute)"
        raise ConfigError(f"unknown tool '{name}'", hint)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if name in known:
            raise
        raise ConfigError(f"tool '{name}' cannot be imported: {error}", "is its module on PYTHONPATH?") from error
    except ValueError:
        raise ConfigError(f"tool '{name}' is not of the form package.module:attribute") from None
    found = getattr(module, attribute, None)
    if found is None:
        options = [key for key, value in vars(module).items() if isinstance(value, Tool)]
        hint = nearest(attribute, options) if options else "declare one there with @tool"
        raise ConfigError(f"tool '{name}': module '{module_name}' has no '{attribute}'", hint)
    if not isinstance(found, ToolKind) and not callable(found):
        raise ConfigError(f"tool '{name}' is a {type(found).__name__}, not a function or a Tool")
    return found
