"""What tests of plans share: handlers that note what they did, and a way to run a plan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from midstream.plans import (
    AgentExecutor,
    Context,
    Correctable,
    Fatal,
    Handler,
    Permanent,
    RunResult,
    Transient,
    handler,
)

T = TypeVar("T")
AT_ONCE = {"first_s": 0.0}


class World:
    """Handlers, and the order of what they did."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.failures: dict[str, list[Exception]] = {}
        """Errors that calls of a name raise, one after another, before they succeed."""

    def fail(self, name: str, *errors: Exception) -> None:
        self.failures[name] = list(errors)

    def act(self, name: str) -> str:
        if waiting := self.failures.get(name):
            raise waiting.pop(0)
        self.did.append(name)
        return f"{name}!"

    @property
    def handlers(self) -> list[Handler]:
        """`add` reads, `do` is idempotent, `once` is not, `undo` takes either back."""

        @handler("add", effects="none")
        async def add(a: int, b: int = 0) -> int:
            return a + b

        @handler("do", effects="idempotent")
        async def do(name: str, after: Any = None) -> str:
            return self.act(name)

        @handler("once")
        async def once(name: str, after: Any = None) -> str:
            return self.act(name)

        @handler("undo", effects="idempotent")
        async def undo(output: Any, args: dict[str, Any], error: Any = None) -> None:
            self.act(f"undo {args['name']}")

        @handler("write", effects="none")
        async def write(ctx: Context, name: str) -> list[str]:
            self.act(name)
            return list(ctx.feedback)

        return [add, do, once, undo, write]

    def executor(self, path: Path, *more: Handler, **settings: Any) -> AgentExecutor:
        return AgentExecutor(path / "plans.db", [*self.handlers, *more], **settings)

    def run(self, path: Path, plan: dict[str, Any], *more: Handler, input: Any = None, **settings: Any) -> RunResult:
        """Run a plan as far as it goes without answers."""
        return self.using(path, lambda executor: executor.run(plan, input), *more, **settings)

    def using(self, path: Path, work: Callable[[AgentExecutor], Awaitable[T]], *more: Handler, **settings: Any) -> T:
        """Do something with an executor."""

        async def main() -> T:
            async with self.executor(path, *more, **settings) as executor:
                return await work(executor)

        return asyncio.run(main())


def do(name: str, *after: str, handler: str = "do", undo: bool = False, **fields: Any) -> dict[str, Any]:
    """A node that does `name` after others."""
    node: dict[str, Any] = {"id": name, "handler": handler, "args": {"name": name}, "after": after, "retry": AT_ONCE}
    if undo:
        node["compensate"] = {"handler": "undo", "retry": AT_ONCE}
    return node | fields


def plan(*nodes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"nodes": list(nodes), **fields}


__all__ = ["Correctable", "Fatal", "Permanent", "Transient", "World", "do", "plan"]
