"""Engines of your own by import path: `package.module:attribute`, a function from a tokenizer to an engine."""

from __future__ import annotations

import importlib
from typing import Any

from midstream.core.errors import ConfigError
from midstream.engines.base import Engine
from midstream.engines.chat import ChatTokenizer


def is_import_path(name: str) -> bool:
    """Whether `name` has the form `package.module:attribute`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def imported_engine(path: str, tokenizer: ChatTokenizer) -> Engine:
    """Return the engine that the function at `path` makes for `tokenizer`, the policy's. Raises `ConfigError`."""
    module, _, attribute = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine '{path}' cannot be imported: {error}", "is its module on PYTHONPATH?") from error
    if not callable(make):
        raise ConfigError(f"engine '{path}' is not a function", "give a function from a tokenizer to an engine")
    made: Any = make(tokenizer)
    if not hasattr(made, "generate"):
        raise ConfigError(f"engine '{path}' returned {type(made).__name__}, not an engine", "return one from it")
    return made
