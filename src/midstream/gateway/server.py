"""Serving the application: as a program of its own, or in the event loop of one that has the engine already."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from midstream.core.errors import UserError
from midstream.gateway.app import make_app
from midstream.gateway.service import Gateway

BACKLOG = 4096
"""Connections the system may hold that have not been accepted yet."""


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """Serve inside this event loop; gives the URL. On leaving, calls under way are let finish first."""
    listening = listen(gateway.config.host, gateway.config.port)
    server = uvicorn.Server(_settings(gateway))
    task = asyncio.create_task(_until_stopped(server, listening))
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.005)
    try:
        yield url_of(listening)
    finally:
        server.should_exit = True
        await task
        listening.close()


async def serve(gateway: Gateway, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then calls under way are let finish."""
    await uvicorn.Server(_settings(gateway)).serve(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `UserError` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}", "choose another port, or end what listens there"
        ) from None
    listening.listen(BACKLOG)
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    # Without uvicorn's handlers: Ctrl-C belongs to the program around it.
    await server._serve([listening])  # pyright: ignore[reportPrivateUsage]


def _settings(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(gateway),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=round(gateway.config.limits.drain_s) + 1,
        # Without a store nothing is watched or drained, and the event loop that ends may be the rollout's own.
        lifespan="on" if gateway.store is not None else "off",
        server_header=False,
    )
