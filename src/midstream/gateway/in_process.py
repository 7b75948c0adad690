"""`InProcessGateway`: black-box agents of a rollout call the engine in training over loopback HTTP.

Recorder, reward and store belong to the rollout; only the calls arrive by HTTP. Importing this module imports no HTTP
server: that happens when the first agent is admitted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from midstream.agents.endpoint import EndpointAddress
from midstream.core import clock
from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.record.recorder import Recorder, RoleEngine

if TYPE_CHECKING:
    from midstream.gateway.service import Gateway

MODEL = "policy"
FOREVER_S = 1e9
UNLIMITED_CALLS = 100_000
"""Concurrent calls admitted: the rollout limits its own concurrency."""


@dataclass(frozen=True, slots=True)
class _Server:
    gateway: Gateway
    url: str
    context: AbstractAsyncContextManager[str]
    """Serves until it is exited."""


class InProcessGateway:
    """The `AgentEndpoint` of a rollout. One server answers all its trajectories.

    The server starts with the first trajectory, in the event loop that runs it. It stops on `close`, or when that loop
    shuts down (as `asyncio.run` does at its end); used in another loop afterwards, it starts again."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[_Server] | None = None

    @asynccontextmanager
    async def admit(
        self,
        recorder: Recorder,
        task: Task,
        role_engines: Mapping[str, RoleEngine],
        sampling: Mapping[str, SamplingParams],
    ) -> AsyncIterator[EndpointAddress]:
        from midstream.gateway.sessions.active import ActiveTrajectory

        server = await self._server(role_engines[MODEL])
        gateway, signer = server.gateway, server.gateway.signer
        active = ActiveTrajectory(
            recorder.trajectory_uid,
            recorder.prompt_uid,
            "",
            task,
            {},
            recorder,
            role_engines=role_engines,
            sampling=sampling,
        )
        gateway.trajectories.attach(active)
        address = EndpointAddress(
            base_url=f"{server.url}/{active.uid}/{active.prompt_uid}/v1",
            token=signer.issue(active.uid, clock.time() + FOREVER_S),
            owner_token=signer.issue(active.uid, clock.time() + FOREVER_S, "owner"),
            model=MODEL,
        )
        try:
            yield address
        finally:
            gateway.trajectories.detach(active)
            if (outcome := active.reported) is not None:
                address.completed, address.answer, address.error = True, outcome.answer, outcome.error
                address.reward, address.rewards = outcome.reward, outcome.rewards

    async def close(self) -> None:
        """Stop the server, if it runs. The next trajectory starts it again."""
        starting, self._starting = self._starting, None
        if starting is not None and self._loop is asyncio.get_running_loop():
            server = await starting
            await server.context.__aexit__(None, None, None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _server(self, role_engine: RoleEngine) -> _Server:
        """The running server of this event loop; starts it if there is none."""
        loop = asyncio.get_running_loop()
        starting = self._starting
        failed = starting is not None and starting.done() and (starting.cancelled() or starting.exception() is not None)
        if starting is None or failed or self._loop is not loop:
            starting = loop.create_task(_start(role_engine))
            self._loop, self._starting = loop, starting
        # Shielded: a cancelled trajectory must not stop the server that the others use.
        return await asyncio.shield(starting)


async def _start(role_engine: RoleEngine) -> _Server:
    from midstream.gateway.config import GatewayConfig, LimitsConfig
    from midstream.gateway.limits.tokens import TokenSigner
    from midstream.gateway.server import serving
    from midstream.gateway.service import Gateway

    config = GatewayConfig(
        port=0,
        model=MODEL,
        expiry_s=FOREVER_S,
        limits=LimitsConfig(concurrency=UNLIMITED_CALLS, queue=UNLIMITED_CALLS, timeout_s=FOREVER_S, drain_s=0),
    )
    gateway = Gateway(config, role_engine, None, TokenSigner(secrets.token_bytes(32)))
    context = serving(gateway)
    return _Server(gateway, await context.__aenter__(), context)
