"""Refuses new trajectories while training is behind."""

from __future__ import annotations

import asyncio

from midstream.engines.base import Engine
from midstream.gateway.config import BackpressureConfig
from midstream.gateway.http.errors import ApiError
from midstream.record.store import Store


async def check_backpressure(limits: BackpressureConfig, store: Store, engine: Engine, channel: str) -> None:
    """Raise `ApiError` 429 if the channel has too many groups ready for training, or too old ones."""
    problem = ""
    if limits.max_ready_groups is not None:
        ready = await asyncio.to_thread(store.groups.ready_count, channel)
        if ready >= limits.max_ready_groups:
            problem = f"{ready} groups of the channel '{channel}' already wait for training"
    if limits.max_staleness is not None:
        oldest = await asyncio.to_thread(store.groups.oldest_ready_version, channel)
        age = 0 if oldest is None else engine.policy_version - oldest
        if age > limits.max_staleness:
            problem = f"a group that waits for training is {age} policy versions old"
    if problem:
        raise ApiError(429, f"{problem}; open trajectories later", code="backpressure", retry_after_s=5)
