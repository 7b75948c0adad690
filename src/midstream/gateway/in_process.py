"""A gateway inside the process that rolls out: black-box flows call the engine that is being trained, over loopback.

The recorder, the reward and the store are the rollout's own; only the calls come in by HTTP.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from midstream.agents.endpoint import EndpointAddress
from midstream.core import clock
from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.gateway.active import ActiveTrajectory
from midstream.gateway.config import GatewayConfig, LimitsConfig
from midstream.gateway.server import serving
from midstream.gateway.service import Gateway
from midstream.gateway.tokens import TokenSigner
from midstream.record.recorder import Recorder, RoleEngine

MODEL = "policy"
FOREVER_S = 1e9
MANY = 100_000
"""Calls let through at once: how many there are is the rollout's business."""


@dataclass(frozen=True, slots=True)
class _Serving:
    gateway: Gateway
    url: str
    context: AbstractAsyncContextManager[str]
    """Left when the event loop shuts down."""


_RUNNING: dict[asyncio.AbstractEventLoop, asyncio.Task[_Serving]] = {}
"""By event loop; those of loops that have ended go when the next one begins."""


class InProcessGateway:
    """The endpoint of a rollout. One server serves all trajectories of an event loop, and ends with it."""

    @asynccontextmanager
    async def admit(
        self,
        recorder: Recorder,
        task: Task,
        role_engines: Mapping[str, RoleEngine],
        sampling: Mapping[str, SamplingParams],
    ) -> AsyncIterator[EndpointAddress]:
        serving = await _running(role_engines[MODEL])
        gateway, url = serving.gateway, serving.url
        live = ActiveTrajectory(
            recorder.trajectory_uid,
            recorder.prompt_uid,
            "",
            task,
            {},
            recorder,
            role_engines=role_engines,
            sampling=sampling,
        )
        gateway.trajectories.attach(live)
        address = EndpointAddress(
            base_url=f"{url}/{live.uid}/{live.prompt_uid}/v1",
            token=gateway.signer.issue(live.uid, clock.time() + FOREVER_S),
            owner_token=gateway.signer.issue(live.uid, clock.time() + FOREVER_S, "owner"),
            model=MODEL,
        )
        try:
            yield address
        finally:
            gateway.trajectories.detach(live)
            if (said := live.said) is not None:
                address.completed, address.answer, address.error = True, said.answer, said.error
                address.reward, address.rewards = said.reward, said.rewards


async def _running(role_engine: RoleEngine) -> _Serving:
    """The server of this event loop."""
    loop = asyncio.get_running_loop()
    for ended in [other for other in _RUNNING if other.is_closed()]:
        del _RUNNING[ended]
    started = _RUNNING.get(loop)
    if started is None or (started.done() and started.exception() is not None):
        started = _RUNNING[loop] = loop.create_task(_start(role_engine))
    return await asyncio.shield(started)


async def _start(role_engine: RoleEngine) -> _Serving:
    config = GatewayConfig(
        port=0,
        model=MODEL,
        expiry_s=FOREVER_S,
        limits=LimitsConfig(concurrency=MANY, queue=MANY, timeout_s=FOREVER_S, drain_s=0),
    )
    gateway = Gateway(config, role_engine, None, TokenSigner(secrets.token_bytes(32)))
    context = serving(gateway)
    return _Serving(gateway, await context.__aenter__(), context)
