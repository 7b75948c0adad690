"""Handlers that every registry has: ask a person, wait, and pass a value on."""

from __future__ import annotations

from typing import Any, Literal

from midstream.plans.context import MISSING, Context
from midstream.plans.handlers import Handler, make_handler


async def ask(
    ctx: Context,
    prompt: str,
    answer: dict[str, Any] | None = None,
    expires_s: float | None = None,
    on_expiry: Literal["fail", "default"] = "fail",
    default: Any = None,
) -> Any:
    """Ask a person; returns the answer. `answer` is its JSON schema. A question that expires fails the node, or returns
    `default`."""
    fallback = default if on_expiry == "default" else MISSING
    return await ctx.ask("answer", answer or {}, prompt, expires_s=expires_s, default=fallback)


async def sleep(ctx: Context, seconds: float) -> None:
    """Wait; survives restarts."""
    await ctx.sleep("timer", seconds)


def value(value: Any = None) -> Any:
    """Return the argument: shapes data between nodes, and serves as a join."""
    return value


BUILT_IN: tuple[Handler, ...] = (
    make_handler(ask, "ask", effects="none"),
    make_handler(sleep, "sleep", effects="none"),
    make_handler(value, "value", effects="none"),
)
