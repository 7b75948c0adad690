"""Loads handlers from modules and files, and opens journals, as the command line names them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from midstream.core.errors import ConfigError, RunError
from midstream.plans.executor import AgentExecutor
from midstream.plans.handlers import Handler, Handlers


def load_handlers(sources: Sequence[str]) -> Handlers:
    """All handlers declared in modules (`package.module`), Python files (`trip.py`), or a `Handlers` in one of them
    (`package.module:name`). Raises `ConfigError` for one that cannot be loaded."""
    found = Handlers()
    for source in sources:
        where, _, name = source.partition(":")
        module = _module(where)
        if not name:
            found.add(module)
            continue
        value = getattr(module, name, None)
        if isinstance(value, Handlers):
            found.take_migrations(value)
            found.add(one for one in value if found.get(one.full_name) is None)
        elif isinstance(value, Handler):
            found.add(value)
        else:
            raise ConfigError(f"'{source}' is neither a handler nor a Handlers", "declare functions with @handler")
    return found


def _module(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"no handlers at '{where}'", "give a Python file, or the name of a module")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise ConfigError(
            f"cannot import the handlers '{where}': {error}", "give the name of a module as Python imports it"
        ) from None


def open_plans(store: str, handlers: Handlers | None = None) -> AgentExecutor:
    """Return an executor on the journal in `store`, a path or a postgresql:// URL. Raises `RunError` when there is no
    file at a path: a misspelt one must not create a journal."""
    if "://" not in store and not Path(store).is_file():
        raise RunError(f"no store at '{store}'", "check the path; 'midstream plan run' makes one")
    return AgentExecutor(store, handlers or ())
