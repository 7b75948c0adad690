"""Gateways for tests with a provider's own client, which `client_of(opened)` of the test module creates."""

from __future__ import annotations

from typing import Any

import pytest

from midstream.engines.scripted import ScriptedEngine


@pytest.fixture
def scripted(request: pytest.FixtureRequest, serve, tiny_tokenizer):
    """Starts a gateway with scripted replies; returns it and a client in its own trajectory."""

    def start(*replies: Any, tokenizer: Any = tiny_tokenizer, **settings: Any):
        served = serve(ScriptedEngine(tokenizer, list(replies)), **settings)
        return served, request.module.client_of(served.open(trajectory_uid="t"))

    return start


@pytest.fixture
def sampled(request: pytest.FixtureRequest, serve, make_policy):
    """A gateway for the model `tiny`, and a client in its own trajectory."""
    served = serve(make_policy().engine)
    return served, request.module.client_of(served.open(trajectory_uid="t"))
