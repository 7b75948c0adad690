"""The world that handlers act on."""

from __future__ import annotations

import pytest
from tests.plans.world import World


@pytest.fixture
def world() -> World:
    return World()
