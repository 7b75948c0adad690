"""The ASGI application: a Starlette app of all routes, behind the gateway's middleware."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from midstream.core.errors import MidstreamError
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.docs_routes import docs_routes
from midstream.gateway.http.middleware import GatewayMiddleware
from midstream.gateway.http.model_routes import model_routes
from midstream.gateway.http.native_routes import native_routes
from midstream.gateway.http.plan_routes import plan_routes
from midstream.gateway.http.responses import error_response
from midstream.gateway.limits.length import largest_body
from midstream.gateway.service import Gateway


def make_app(gateway: Gateway) -> ASGIApp:
    """Return the application that serves `gateway`."""
    config = gateway.config
    # The roles of a rollout, which is without a store, may have engines with larger contexts.
    context_length = gateway.role_engine.engine.context_length
    largest_prompt = math.inf if gateway.store is None else largest_body(gateway.tokenizer, context_length)
    reader = BodyReader(config.limits, largest_prompt)
    routes = [*model_routes(gateway, reader), *native_routes(gateway, reader), *plan_routes(gateway, reader)]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        upkeep = asyncio.create_task(gateway.upkeep.run())
        yield
        upkeep.cancel()
        with suppress(asyncio.CancelledError):
            await upkeep
        await asyncio.to_thread(gateway.require_store().servers.leave)

    app = Starlette(
        routes=[*routes, *docs_routes(gateway, routes)],
        lifespan=lifespan,
        exception_handlers={kind: error_response for kind in (MidstreamError, HTTPException, Exception)},
    )
    hosts = frozenset({config.host, (urlsplit(config.url).hostname or "") if config.url else config.host})
    return GatewayMiddleware(app, gateway.metrics, hosts=None if config.keys else hosts)
