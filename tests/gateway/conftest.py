"""Starts gateways for the tests in this folder."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.served import KEY, HeldEngine, Served

from midstream.engines.chat import ChatTokenizer

Start = Callable[..., Served]


@pytest.fixture(autouse=True, scope="session")
def one_ssl_context() -> Iterator[None]:
    """Load the system's certificates once. Each HTTP client would load them again, for connections without TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture
def start(tiny_tokenizer: ChatTokenizer, tmp_path: Path) -> Iterator[Start]:
    """Starts gateways with scripted `replies`. Settings are the config's; those with the prefix `engine_` are the
    engine's. All gateways of a test share one store."""
    running: list[Served] = []

    def start(replies: Any = "Hello.", **settings: Any) -> Served:
        of_engine = {name.removeprefix("engine_"): settings.pop(name) for name in list(settings) if "engine_" in name}
        hold_after = of_engine.pop("hold_after", None)
        engine = HeldEngine(tiny_tokenizer, replies, **of_engine)
        engine.hold_after = hold_after
        running.append(Served(engine, tiny_tokenizer, tmp_path / "store.sqlite", **settings))
        return running[-1]

    yield start
    for served in running:
        served.stop()


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for a gateway with one key, `KEY`."""
    monkeypatch.setenv("TEST_GATEWAY_KEY", KEY)
    return {"keys": ({"name": "trainer", "env": "TEST_GATEWAY_KEY"},)}
