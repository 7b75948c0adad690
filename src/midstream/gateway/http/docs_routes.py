"""`/openapi.json` and `/docs`. They require a key if the gateway has keys; browsers send it as a password."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from midstream.gateway.http.browser import page_endpoint
from midstream.gateway.http.docs_page import HEADERS, docs_page
from midstream.gateway.http.openapi import describe
from midstream.gateway.http.responses import json_response
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway


def docs_routes(gateway: Gateway, routes: Sequence[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield the routes that describe `routes`."""
    description = functools.cache(lambda: describe(routes))

    async def for_programs(request: Request, caller: Caller) -> Response:
        return json_response(description())

    async def for_people(request: Request, caller: Caller) -> Response:
        return HTMLResponse(docs_page(description()), headers=HEADERS)

    yield Route("/openapi.json", page_endpoint(gateway, for_programs))
    yield Route("/docs", page_endpoint(gateway, for_people))
