"""Serving the application: as a program of its own, or in the event loop of one that has the engine already."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from midstream.core.errors import UserError
from midstream.gateway.http.app import make_app
from midstream.gateway.http.protocol import BoundedHead
from midstream.gateway.service import Gateway

STOPPING = "stopping"
LAST_WORDS_S = 2
"""Time answers get to reach their clients, after the calls have had theirs."""
BACKLOG = 4096
"""Connections the system may hold that have not been accepted yet."""


@asynccontextmanager
async def serving(gateway: Gateway, listening: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve inside this event loop; gives the URL. On leaving, calls under way are let finish first; meanwhile others
    are refused, and whoever asks is told that this gateway is stopping."""
    own = listening or listen(gateway.config.host, gateway.config.port)
    server = uvicorn.Server(_settings(gateway))
    # Without uvicorn's handlers of signals: those belong to the program around it.
    task = asyncio.create_task(server._serve([own]))  # pyright: ignore[reportPrivateUsage]
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(0.005)
    try:
        yield url_of(own)
    finally:
        # While the server still listens: once it is told to exit, it hangs up on whoever is not in the midst of a call.
        gateway.gate.close(STOPPING)
        await gateway.gate.drained(gateway.config.limits.drain_s)
        server.should_exit = True
        await task
        own.close()


async def serve(gateway: Gateway, listening: socket.socket, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; then calls under way are let finish. The second one ends the process at once."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    ends = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        stopped.set()
        for number in ends:
            loop.remove_signal_handler(number)

    for number in ends:
        loop.add_signal_handler(number, stop)
    gc.collect()
    gc.freeze()  # what is loaded by now stays: to go through it in each collection would hold up calls
    async with serving(gateway, listening) as url:
        on_ready(url)
        await stopped.wait()


def run(program: Coroutine[Any, Any, None]) -> None:
    """Run a program around `serve`, on uvloop where there is one."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(program)


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


def _settings(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(gateway),
        http=BoundedHead,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=LAST_WORDS_S,
        # Without a store nothing is watched, and the event loop that ends may be the rollout's own.
        lifespan="on" if gateway.store is not None else "off",
        server_header=False,
    )
