"""Renders third-party chat templates in transformers' sandbox, with limits on time and size.

The sandbox restricts a template to its arguments, but not its run time. Here every loop, macro and call checks the
clock, and the size of every operation that multiplies or joins text is checked first. Not limited: a single comparison
of deeply shared lists.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Environment, Template, nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from midstream.engines.formats.template import TooMuch

TIME_S = 5.0
"""Time limit of a template for one conversation."""
MOST = 1 << 26
"""Most characters that a template may produce."""
ITEM = 16
"""Characters that a list item counts for besides its text."""

_WIDE = re.compile(r"\d{7,}|\*|:[^{}]*\{")
"""Format string widths that are large or not literal."""
_GROWS = frozenset(
    ("batch", "center", "expandtabs", "indent", "join", "ljust", "replace", "rjust", "slice", "tojson", "translate")
) | {"zfill"}
"""Filters and methods whose output exceeds their input."""
_LOOKS = frozenset(
    (
        *("attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list", "map"),
        *("max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "sum", "unique"),
    )
)
"""Filters that do not convert their value to text."""
_bound = threading.local()


def compiled(source: str) -> Template:
    """Compile the template `source` for `render_bounded`."""
    with _Clock():
        return _compiled(source)


def render_bounded(source: str, arguments: Mapping[str, Any]) -> str:
    """Render `source` with `arguments`. Raises `TooMuch` when it exceeds `TIME_S` or `MOST`, and jinja's errors."""
    template = compiled(source)
    with _Clock():
        return template.render(arguments)


class _Clock:
    """Limits this thread to `TIME_S` inside the context."""

    def __enter__(self) -> None:
        _bound.until = time.monotonic() + TIME_S

    def __exit__(self, *_: object) -> None:
        _bound.until = None


class _Bounded(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    @property
    def tick(self) -> None:
        """Check the clock; compiled loops and macros read this property."""
        until = getattr(_bound, "until", None)
        if until is not None and time.monotonic() > until:
            raise TooMuch(f"the model's chat template took longer than {TIME_S:g} s and was stopped")

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Watch().visit(source), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            return _sized(left + right)
        self.tick  # noqa: B018
        if operator == "*":
            number, other = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(number, int):
                _allow(number.bit_length() + other.bit_length() if isinstance(other, int) else number * _size(other))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _allow(left.bit_length() * max(right, 0) << 6)
        elif operator == "%" and isinstance(left, str):
            _check_widths(left)
            _written(right)
        return _sized(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(value.__self__)
        return wrapped

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.tick  # noqa: B018
        name = getattr(__obj, "__name__", "")
        if name in _GROWS:
            _check_growth(getattr(__obj, "__self__", ""), (*args, *kwargs.values()))
        elif name in ("format", "format_map"):
            _written([*args, *kwargs.values()])
        return _sized(super().call(__context, __obj, *args, **kwargs))


class _Watch(NodeTransformer):
    """Inserts a clock check at the start of every loop and macro, and a size check for `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._watched(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._watched(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._watched(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [nodes.Filter(one, "written", [], [], None, None, lineno=node.lineno) for one in node.nodes]
        return nodes.Filter(node, "written", [], [], None, None, lineno=node.lineno)

    def _watched(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        look = nodes.ExprStmt(nodes.EnvironmentAttribute("tick", lineno=node.lineno), lineno=node.lineno)
        node.body.insert(0, look)
        return node


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs: Environment = _compile_jinja_template("").environment
    environment = _Bounded(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(one) for one in theirs.extensions.values()],
        finalize=_written,
    )
    environment.concat = _concat  # type: ignore[assignment]
    environment.filters = {name: _guarded(name, one) for name, one in theirs.filters.items()} | {"written": _written}
    environment.globals = {name: one for name, one in theirs.globals.items() if name != "lipsum"}
    return environment.from_string(source)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the filter `function` with a size check."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        own = [arg for arg in args if not isinstance(arg, Context | Environment | EvalContext)]
        more = (*own[1:], *kwargs.values())
        if name in _GROWS:
            _check_growth(own[0] if own else "", more)
        elif name == "format" and own and isinstance(own[0], str):
            _check_widths(own[0])
        if name not in _LOOKS:
            _written(own)
        return _sized(function(*args, **kwargs))

    return guarded


def _concat(parts: Iterable[str]) -> str:
    pieces: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        _allow(size)
        pieces.append(part)
    return "".join(pieces)


def _check_growth(value: Any, arguments: Sequence[Any]) -> None:
    size = _size(value) + 1
    for argument in arguments:
        _allow(size * (argument if isinstance(argument, int) else _size(argument)))


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        raise TooMuch("the model's chat template formats text with a width that is too large or not fixed")


def _sized(value: Any) -> Any:
    """Return `value` if it is not too long."""
    if isinstance(value, (str, list, tuple, dict)) and len(value) > MOST:
        _allow(len(value))
    return value


def _written(value: Any) -> Any:
    """Return `value` if its text, including nested values, is not too large."""
    size = len(value) if isinstance(value, str) else _size(value)
    if size > MOST:
        _allow(size)
    return value


def _size(value: Any) -> int:
    """Count the characters in `value`, plus `ITEM` for each item, up to a little more than `MOST`."""
    size, waiting = 0, [value]
    while waiting and size <= MOST:
        one = waiting.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            size += ITEM * len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            size += ITEM * len(one)
            waiting += one
    return size


def _allow(size: int) -> None:
    if size > MOST:
        raise TooMuch(f"the model's chat template makes more than {MOST} characters of one conversation")
