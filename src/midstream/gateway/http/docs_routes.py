"""`/openapi.json` and `/docs`. They require a key if the gateway has keys; browsers send it as a password."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from midstream.gateway.http.docs_page import HEADERS, docs_page
from midstream.gateway.http.errors import ApiError, openai_body
from midstream.gateway.http.identity import browser_caller
from midstream.gateway.http.openapi import describe
from midstream.gateway.http.responses import json_response
from midstream.gateway.service import Gateway

_BASIC = {"WWW-Authenticate": 'Basic realm="Midstream gateway: a key is the password", charset="UTF-8"'}


def docs_routes(gateway: Gateway, routes: Sequence[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield the routes that describe `routes`."""
    description = functools.cache(lambda: describe(routes))

    def protected(answer: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            try:
                browser_caller(request, gateway)
            except ApiError as error:
                return json_response(openai_body(error), error.status, _BASIC)
            return answer()

        return handler

    yield Route("/openapi.json", protected(lambda: json_response(description())))
    yield Route("/docs", protected(lambda: HTMLResponse(docs_page(description()), headers=HEADERS)))
