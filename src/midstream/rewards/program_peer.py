"""Runs inside the sandbox, in two sessions: one holds a test, the other the program it tests.

Imports only the standard library: `programs` sends this file as source. The test calls the program by messages, which
`programs` carries between the sessions, so that the program can neither read the test nor change how it is judged.
Messages are JSON. Data is copied: instances of builtin types and of their subclasses arrive as builtin values. Any
other object stays where it is, and the other side gets a `Remote`, which equals nothing.

The test's side trusts nothing: it makes only plain data of what arrives, and lets the program use only what the test
itself handed over: functions, iterators, and public attributes of objects whose class the test defines.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import collections
import contextlib
import datetime
import decimal
import functools
import io
import json
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

FOLDER = "/tmp/work"
STACK_BYTES = 16 << 20
NATIVE_INT = 1 << 62
"""Larger numbers are sent in hexadecimal, whose length Python does not limit."""

_incoming: SimpleQueue[bytes] = SimpleQueue()
_outgoing: SimpleQueue[bytes | None] = SimpleQueue()
_program: types.ModuleType | None = None
"""None on the test's side."""
_sent = 0
_error: BaseException | None = None
_objects: dict[int, Any] = {}
_numbers: dict[int, int] = {}


class Remote:
    """An object of the other side. Passes on calls, items and attributes; equals nothing."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return ask("getattr", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask("setattr", self._number, name, value)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return ask("call", self._number, *given, **named)

    def __getitem__(self, key: Any) -> Any:
        return ask("getitem", self._number, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        ask("setitem", self._number, key, value)

    def __contains__(self, value: Any) -> Any:
        return ask("contains", self._number, value)

    def __iter__(self) -> Any:
        found = ask("iter", self._number)
        return found if type(found) is Remote else iter(found)

    def __next__(self) -> Any:
        return ask("next", self._number)

    def __len__(self) -> Any:
        return ask("len", self._number)

    def __bool__(self) -> Any:
        return ask("bool", self._number)

    def __str__(self) -> Any:
        return ask("str", self._number)

    def __repr__(self) -> Any:
        return ask("repr", self._number)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda of, *given, **named: of(*given, **named),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda of, key: of[key],
    "setitem": lambda of, key, value: of.__setitem__(key, value),
    "contains": lambda of, value: value in of,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "await": lambda of: _waited(of),
    "names": lambda _, *names: {name: vars(_program)[name] for name in names if name in vars(_program)},
}


# Data


class Containers:
    """The mutable containers of a message in order of appearance, so that both sides number them alike."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._places: dict[int, int] = {}

    def add(self, value: Any) -> None:
        self._places[id(value)] = len(self.all)
        self.all.append(value)

    def place(self, value: Any) -> int | None:
        return self._places.get(id(value))


MUTABLE: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "list": (list, list.__iter__, lambda made, items: made.__setitem__(slice(None), items)),
    "dict": (
        dict,
        lambda value: [part for pair in dict.items(value) for part in pair],
        lambda made, items: (made.clear(), made.update(zip(items[::2], items[1::2], strict=True))),
    ),
    "set": (set, set.__iter__, lambda made, items: (made.clear(), made.update(items))),
    "deque": (collections.deque, collections.deque.__iter__, lambda made, items: (made.clear(), made.extend(items))),
    "bytearray": (bytearray, bytearray.__iter__, lambda made, items: made.__setitem__(slice(None), bytes(items))),
}
"""Containers by name: the type, its parts, and how parts are put into one, without methods of subclasses."""
IMMUTABLE: dict[str, tuple[type, Callable[[Any], Any], Callable[[list[Any]], Any]]] = {
    "int": (int, lambda value: [hex(int.__int__(value))], lambda parts: int(parts[0], 16)),
    "float": (float, lambda value: [float.__float__(value)], lambda parts: float(parts[0])),
    "str": (str, lambda value: [str.__str__(value)], lambda parts: str(parts[0])),
    "complex": (complex, lambda value: [complex.__add__(value, 0j).real, complex.__add__(value, 0j).imag],
                lambda parts: complex(*parts)),
    "bytes": (bytes, lambda value: [bytes.__getitem__(value, slice(None)).decode("latin-1")],
              lambda parts: parts[0].encode("latin-1")),
    "tuple": (tuple, tuple.__iter__, tuple),
    "frozenset": (frozenset, frozenset.__iter__, frozenset),
    "range": (range, lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    "decimal": (decimal.Decimal, lambda value: [decimal.Decimal.__str__(value)],
                lambda parts: decimal.Decimal(parts[0])),
    "datetime": (datetime.datetime, lambda value: [datetime.datetime.isoformat(value)],
                 lambda parts: datetime.datetime.fromisoformat(parts[0])),
    "date": (datetime.date, lambda value: [datetime.date.isoformat(value)],
             lambda parts: datetime.date.fromisoformat(parts[0])),
    "time": (datetime.time, lambda value: [datetime.time.isoformat(value)],
             lambda parts: datetime.time.fromisoformat(parts[0])),
    "timedelta": (datetime.timedelta, lambda value: [value.days, value.seconds, value.microseconds],
                  lambda parts: datetime.timedelta(*parts)),
}  # fmt: skip
"""Other types by name: the type, its parts, and how it is made of them. Subclasses come first."""


def encode(value: Any, seen: Containers) -> Any:
    """Return `value` as JSON data."""
    kind = type(value)
    if value is None or kind in (bool, str, float) or (kind is int and -NATIVE_INT < value < NATIVE_INT):
        return value
    if kind is Remote:
        return {"yours": value._number}
    if value is ...:
        return {"ellipsis": []}
    place = seen.place(value)
    if place is not None:
        return {"seen": place}
    for name, (base, parts, _) in MUTABLE.items():
        if issubclass(kind, base):
            seen.add(value)
            return {name: [encode(part, seen) for part in parts(value)]}
    for name, (base, parts, _) in IMMUTABLE.items():
        if issubclass(kind, base):
            return {name: [encode(part, seen) for part in parts(value)]}
    return _named(value) or _mine(value)


def _named(value: Any) -> Any:
    """Builtins, and functions of the standard library that the test hands over, by name."""
    name = getattr(value, "__name__", None)
    if not isinstance(name, str) or isinstance(value, types.ModuleType):
        return None
    if vars(builtins).get(name) is value:
        return {"builtin": name}
    module = getattr(value, "__module__", None)
    if _program is not None or not isinstance(module, str) or module not in sys.stdlib_module_names:
        return None
    return {"import": [module, name]} if getattr(sys.modules.get(module), name, None) is value else None


def _mine(value: Any) -> dict[str, Any]:
    number = _numbers.setdefault(id(value), len(_objects))
    _objects[number] = value
    return {"mine": number, "awaitable": type(value) is types.CoroutineType}


def decode(data: Any, seen: Containers) -> Any:
    """Return the value of JSON data. Raises for data that `encode` does not make."""
    if not isinstance(data, dict):
        return data
    name, parts = next(iter(data.items()))
    if name in MUTABLE:
        kind, _, fill = MUTABLE[name]
        made = kind()
        seen.add(made)
        fill(made, [decode(part, seen) for part in parts])
        return made
    if name in IMMUTABLE:
        return IMMUTABLE[name][2]([decode(part, seen) for part in parts])
    if name == "seen":
        return seen.all[parts]
    if name == "yours":
        return _objects[parts]
    if name == "mine":
        return _awaited(parts) if data["awaitable"] else Remote(parts)
    if name == "ellipsis":
        return ...
    if name == "builtin" and (_program is not None or isinstance(vars(builtins)[parts], type)):
        return vars(builtins)[parts]
    if name == "import" and _program is not None:
        return getattr(__import__(parts[0], fromlist=[parts[1]]), parts[1])
    raise ValueError("not data")


async def _awaited(number: int) -> Any:
    return ask("await", number)


# Messages


def ask(do: str, of: int | None, *given: Any, **named: Any) -> Any:
    """Let the other side do something, and serve what it asks for meanwhile. Raises what it raises."""
    seen = Containers()
    arguments = {"given": [encode(one, seen) for one in given], "named": {k: encode(v, seen) for k, v in named.items()}}
    reply = _exchanged({"do": do, "of": of, **arguments})
    while "do" in reply:
        reply = _exchanged(serve(reply))
    for made, parts in zip(tuple(seen.all), reply["containers"], strict=False):
        _fill(made, parts, seen)
    sys.stdout.write(str(reply.get("printed", "")))
    if "error" in reply:
        raise _exception(reply["error"], str(reply["value"]))
    return decode(reply["value"], seen)


def serve(message: Any) -> Any:
    """Do what the other side asks for, and return the reply. Containers among the arguments are sent back as they are
    afterwards."""
    seen, printed = Containers(), io.StringIO()
    try:
        do, of = message["do"], None if message["of"] is None else _objects[message["of"]]
        given = [decode(one, seen) for one in message["given"]]
        named = {name: decode(one, seen) for name, one in message["named"].items()}
        arguments = tuple(seen.all)
        if _program is None and not _handed_over(do, of, given):
            raise PermissionError(f"a program cannot {do} this")
        try:
            with contextlib.nullcontext() if _program is None else contextlib.redirect_stdout(printed):
                value = OPERATIONS[do](of, *given, **named)
        except BaseException as error:
            return {**_failed(error), **_state(arguments, seen), "printed": printed.getvalue()}
        return {**_state(arguments, seen), "value": encode(value, seen), "printed": printed.getvalue()}
    except BaseException as error:  # what cannot be read or sent, such as data nested too deeply
        return {**_failed(error), "containers": [], "printed": ""}


def _failed(error: BaseException) -> dict[str, Any]:
    names = [kind.__name__ for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind]
    return {"error": names, "value": str(error)}


def _state(containers: tuple[Any, ...], seen: Containers) -> dict[str, Any]:
    return {"containers": [[encode(part, seen) for part in _parts(made)] for made in containers]}


def _parts(made: Any) -> Any:
    return next(parts for kind, parts, _ in MUTABLE.values() if type(made) is kind)(made)


def _fill(made: Any, parts: list[Any], seen: Containers) -> None:
    next(fill for kind, _, fill in MUTABLE.values() if type(made) is kind)(made, [decode(one, seen) for one in parts])


def _handed_over(do: str, of: Any, given: list[Any]) -> bool:
    """Whether the program may do this with an object of the test."""
    functions = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
    if do == "call" and (isinstance(of, functions) or (isinstance(of, type) and of.__module__ == "__main__")):
        return True
    if do in ("iter", "next") and isinstance(of, Iterator):
        return True
    if do == "await":
        return type(of) is types.CoroutineType
    own = type(of).__module__ == "__main__" and do not in ("names", "await")
    return own and not (do in ("getattr", "setattr") and str(given[0]).startswith("_"))


def _exception(names: Any, text: str) -> BaseException:
    for name in names:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            with contextlib.suppress(TypeError):
                return kind(text)
    return Exception(text)


def _exchanged(message: Any) -> Any:
    _outgoing.put(json.dumps(message).encode())
    return json.loads(_incoming.get())


def _waited(coroutine: Any) -> Any:
    """Run a coroutine in its own thread, because a loop may be running in this one."""
    made: list[Any] = []
    failed: list[BaseException] = []

    def act() -> None:
        try:
            made.append(asyncio.run(coroutine))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


# What the cells of the two sessions call


def load(program: str) -> None:
    """Run the program as `__main__`, and be ready to serve. Propagates its exceptions."""
    global _program
    _program = types.ModuleType("__main__")
    sys.modules["__main__"] = _program
    exec(compile(program, "<program>", "exec"), vars(_program))
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_served, daemon=True).start()


def _served() -> None:
    while True:
        _outgoing.put(json.dumps(serve(json.loads(_incoming.get()))).encode())


def start(test: str) -> bool | None:
    """Run a test until it ends, returning True or raising what it raises, or until it needs the program."""
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_tested, args=(test,), daemon=True).start()
    return _until_message()


def turn() -> bool | None:
    """Go on with the message in the file `in`."""
    with open(os.path.join(FOLDER, "in"), "rb") as file:
        _incoming.put(file.read())
    return _until_message()


def _tested(test: str) -> None:
    global _error
    _error = None
    try:
        tree = ast.parse(test, "<test>")
        own = vars(builtins)
        names = sorted({one.id for one in ast.walk(tree) if isinstance(one, ast.Name) and one.id not in own})
        scope = {"__name__": "__main__", "__builtins__": dict(own), **ask("names", None, *names)}
        exec(compile(tree, "<test>", "exec"), scope)
    except BaseException as error:
        _error = error
    _outgoing.put(None)


def _until_message() -> bool | None:
    """Wait for the next message, and write it to the file `out-N`. True when a test has passed."""
    global _sent
    message = _outgoing.get()
    if message is None:
        if _error is not None:
            raise _error
        return True
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(FOLDER, f"out-{_sent}"))
    _sent += 1
    with open(os.path.join(FOLDER, f"out-{_sent}"), "wb") as file:
        file.write(message)
    return None
