"""Runs inside the sandbox: loads a program, then runs tests against it one by one.

Imports only the standard library: `programs` sends this file as source, to be executed in a namespace with its own copy
of the builtins. A test sees builtins and modules as they were before the program ran. Of the program it sees only the
names it mentions, and their results as plain data: an instance of a builtin type or of a subclass becomes the builtin
value, any other object a `Result`, which equals nothing.
"""

from __future__ import annotations

import ast
import builtins
import collections
import copy
import datetime
import decimal
import functools
import itertools
import json
import math
import random
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

USED = (copy, functools, itertools, json, math, random, re)
"""Modules imported in advance, so that tests find them as they were before the program ran."""
PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, range, type(None), type(...), decimal.Decimal,
    datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
)  # fmt: skip
REBUILD: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (complex, lambda value: complex(complex.__add__(value, 0j))),
    (str, str.__str__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (list, lambda value: [plain(item) for item in list.__iter__(value)]),
    (tuple, lambda value: tuple([plain(item) for item in tuple.__iter__(value)])),
    (set, lambda value: {plain(item) for item in set.__iter__(value)}),
    (frozenset, lambda value: frozenset([plain(item) for item in frozenset.__iter__(value)])),
    (dict, lambda value: {plain(key): plain(item) for key, item in dict.items(value)}),
    (collections.deque, lambda value: collections.deque([plain(item) for item in collections.deque.__iter__(value)])),
)
"""Convert an instance of a subclass to the builtin value, without using its methods."""

_program = types.ModuleType("__main__")
_modules: dict[str, tuple[Any, dict[str, Any]]] = {}


class Result:
    """An object of the program. Passes on its methods, items and attributes as plain data; equals nothing."""

    __slots__ = ("_of",)

    def __init__(self, of: Any) -> None:
        object.__setattr__(self, "_of", of)

    def __getattr__(self, name: str) -> Any:
        return plain(getattr(self._of, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of, name, value)

    def __call__(self, *given: Any, **named: Any) -> Any:
        try:
            return plain(self._of(*map(inner, given), **dict(zip(named, map(inner, named.values()), strict=True))))
        finally:
            for one in (*given, *named.values()):
                _clean(one)

    def __getitem__(self, key: Any) -> Any:
        return plain(self._of[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._of[key] = value

    def __contains__(self, value: Any) -> Any:
        return plain(value in self._of)

    def __iter__(self) -> Iterator[Any]:
        return map(plain, iter(self._of))

    def __next__(self) -> Any:
        return plain(next(self._of))

    def __len__(self) -> Any:
        return plain(len(self._of))

    def __bool__(self) -> Any:
        return plain(bool(self._of))

    def __str__(self) -> Any:
        return plain(str(self._of))

    def __repr__(self) -> Any:
        return plain(repr(self._of))


def plain(value: Any) -> Any:
    """Return `value` as plain data: copies of builtin values, and a `Result` for any other object."""
    kind = type(value)
    for one in PLAIN:
        if kind is one:
            return value
    for base, rebuild in REBUILD:
        if issubclass(kind, base):
            return rebuild(value)
    if kind is types.CoroutineType:
        return _awaited(value)
    if kind is Result or kind is types.ModuleType or (isinstance(value, type) and _is_builtin(value)):
        return value
    return Result(value)


async def _awaited(value: Any) -> Any:
    return plain(await value)


def _is_builtin(value: type) -> bool:
    return any(value is one for one in vars(builtins).values())


def inner(value: Any) -> Any:
    """Return the program's object in a `Result`; any other value unchanged."""
    return value._of if type(value) is Result else value


def _clean(value: Any) -> None:
    """Convert an argument that the program may have changed back to plain data."""
    kind = type(value)
    if kind is list or kind is collections.deque:
        items = plain(value)
        value.clear()
        value.extend(items)
    elif kind is dict or kind is set:
        items = plain(value)
        value.clear()
        value.update(items)


def load(program: str) -> None:
    """Run the program as `__main__`. Propagates its exceptions."""
    global _program
    # a separate scope, from which the names here cannot be reached
    _program = types.ModuleType("__main__")
    sys.modules["__main__"] = _program
    _modules.update({name: (one, dict(vars(one))) for name, one in list(sys.modules.items()) if one is not _program})
    try:
        exec(compile(program, "<program>", "exec"), vars(_program))
    finally:
        _restore()


def run(test: str) -> None:
    """Run a test. Raises if it fails."""
    tree = ast.parse(test, "<test>")
    own = vars(builtins)
    names = {one.id for one in ast.walk(tree) if isinstance(one, ast.Name)}
    found = {name: plain(vars(_program)[name]) for name in names if name not in own and name in vars(_program)}
    scope = {"__name__": "__main__", "__builtins__": dict(own), **found}
    try:
        exec(compile(tree, "<test>", "exec"), scope)
    finally:
        _restore()


def _restore() -> None:
    """Undo the program's changes to modules imported before it."""
    for name, (module, names) in _modules.items():
        sys.modules[name] = module
        for key, value in names.items():
            if vars(module).get(key, _modules) is not value:
                vars(module)[key] = value
