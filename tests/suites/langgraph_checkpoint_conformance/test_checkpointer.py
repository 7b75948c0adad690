"""langgraph-checkpoint-conformance: `StoreSaver` on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from langgraph.checkpoint.conformance.capabilities import Capability

from midstream.integrations.langgraph import StoreSaver
from midstream.store import Database

TESTS: list[tuple[str, Callable[[Any], Coroutine[Any, Any, None]]]] = []
for one in Capability:
    module = importlib.import_module(f"langgraph.checkpoint.conformance.spec.test_{one.value}")
    TESTS += [(test.__name__, test) for test in getattr(module, f"ALL_{one.value.upper()}_TESTS")]


@pytest.mark.parametrize(("name", "test"), TESTS, ids=[name for name, _ in TESTS])
def test_checkpointer(name: str, test: Callable[[Any], Coroutine[Any, Any, None]], database: str) -> None:
    with Database(database, "normal") as opened:
        asyncio.run(test(StoreSaver(opened)))
