"""`load_tools`: tools by name, built-in or a user's own as `package.module:attribute`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from midstream.core.errors import ConfigError, nearest
from midstream.tools.declare import Tool, tool

_BUILT_IN = {
    "calculator": "midstream.tools.calculator:calculator",
    "echo": "midstream.tools.echo:echo",
    "search": "midstream.tools.search:search",
}


def load_tools(names: Sequence[str]) -> list[Tool[..., Any]]:
    """Load the named tools. `package.module:attribute` is a `Tool`, or a typed function to convert to one."""
    return [_load(name) for name in names]


def _load(name: str) -> Tool[..., Any]:
    module_name, colon, attribute = _BUILT_IN.get(name, name).partition(":")
    if not colon:
        hint = f"{nearest(name, _BUILT_IN)} Your own: package.module:attribute"
        raise ConfigError(f"unknown tool '{name}'", hint)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"tool '{name}' cannot be imported: {error}", "is its module on PYTHONPATH?") from error
    except ValueError:
        raise ConfigError(f"tool '{name}' is not of the form package.module:attribute") from None
    found = getattr(module, attribute, None)
    if isinstance(found, Tool):
        return found
    if found is None:
        options = [key for key, value in vars(module).items() if isinstance(value, Tool)]
        hint = nearest(attribute, options) if options else "declare one there with @tool"
        raise ConfigError(f"tool '{name}': module '{module_name}' has no '{attribute}'", hint)
    if not callable(found):
        raise ConfigError(f"tool '{name}' is a {type(found).__name__}, not a function or a Tool")
    return tool(found)
