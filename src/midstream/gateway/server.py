"""Serves the application: as a program, or inside an event loop that already has the engine."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from midstream.core.errors import UserError
from midstream.core.garbage import rare_collections
from midstream.gateway.http.app import make_app
from midstream.gateway.http.protocol import BoundedHead
from midstream.gateway.service import Gateway

STOPPING = "stopping"
FLUSH_S = 2
"""Time for the last answers to reach their clients, after `drain_s`."""
BACKLOG = 4096
"""Connections that may wait to be accepted."""


@asynccontextmanager
async def serving(gateway: Gateway, listening: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve in this event loop; gives the URL. On exit calls in progress may finish; meanwhile new ones are refused,
    and `/ready` reports that the gateway is stopping."""
    own = listening or listen(gateway.config.host, gateway.config.port)
    server = uvicorn.Server(_settings(gateway))
    # `_serve` installs no signal handlers: those belong to the program.
    task = asyncio.create_task(server._serve([own]))  # pyright: ignore[reportPrivateUsage]
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.005)
    try:
        yield url_of(own)
    finally:
        # The server still listens while calls drain: once it exits, it closes connections without a call in progress.
        gateway.admission.close(STOPPING)
        await gateway.admission.drain(gateway.config.limits.drain_s)
        server.should_exit = True
        await task
        own.close()


async def serve(gateway: Gateway, listening: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then let calls in progress finish. A second signal ends the process at once."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    ends = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        stopped.set()
        for number in ends:
            loop.remove_signal_handler(number)

    for number in ends:
        loop.add_signal_handler(number, stop)
    with rare_collections():  # a long one would delay calls
        async with serving(gateway, listening) as url:
            on_ready(url)
            await stopped.wait()


def run(program: Coroutine[Any, Any, None]) -> None:
    """Run a program around `serve`, on uvloop if it is installed."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(program)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `UserError` if the address is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            "choose another port, or stop the program that listens there",
        ) from None
    listening.listen(BACKLOG)
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _settings(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(gateway),
        http=BoundedHead,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_S,
        # Without a store there is no upkeep, and a rollout may end its event loop at any time.
        lifespan="on" if gateway.store is not None else "off",
        server_header=False,
    )
