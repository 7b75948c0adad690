"""`ApiRoute`: a Starlette route whose handler gets its parsed body, and which knows what the API page says about it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from midstream.gateway.dialects.shared import Body
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.errors import ApiError

NAME = r"[A-Za-z0-9._:@-]{1,200}"
"""Names in paths, queries and headers: trajectories, groups, channels, roles."""
_CLIENT_ARGUMENTS = frozenset({"beta"})
"""Query arguments that Anthropic's clients send with every call; they change nothing."""

Handler = Callable[[Request], Awaitable[Response]]
BodyHandler = Callable[[Request, Any], Awaitable[Response]]


class ApiRoute(Route):
    """A route that requires an identified caller and passes the parsed body to its handler.

    `optional`: an empty body is `None`. `is_prompt`: the body holds a prompt, which limits its size. `query`: names
    that the query may have; others are refused."""

    def __init__(
        self,
        method: str,
        path: str,
        handler: Handler | BodyHandler,
        body: type[Body] | None = None,
        *,
        reader: BodyReader | None = None,
        identify: Callable[[Request], object] | None = None,
        optional: bool = False,
        is_prompt: bool = False,
        query: tuple[str, ...] = (),
    ) -> None:
        self.body, self.optional, self.query = body, optional, query
        endpoint: Any = handler
        if body is not None:
            assert reader is not None and identify is not None
            endpoint = _with_body(handler, TypeAdapter(body), reader, identify, optional, is_prompt, query)
        super().__init__(path, endpoint, methods=[method])
        self.method = method


def _with_body(
    handler: Any,
    body: TypeAdapter[Any],
    reader: BodyReader,
    identify: Callable[[Request], object],
    optional: bool,
    is_prompt: bool,
    query: tuple[str, ...],
) -> Handler:
    known = _CLIENT_ARGUMENTS.union(query)

    async def endpoint(request: Request) -> Response:
        identify(request)  # before the body is read: strangers cannot make the gateway read one
        if request.scope["query_string"] and (unknown := set(request.query_params) - known):
            name = min(unknown)
            raise ApiError(400, f"'{name}' is not an argument of this endpoint; leave it out", param=name)
        content = await reader.content(request, is_prompt=is_prompt)
        parsed = None if optional and not content else await reader.parse(body, content)
        return await handler(request, parsed)

    return endpoint


def name_in_path(request: Request, parameter: str) -> str:
    """Return the name in the path. Raises `ApiError` 400 if it is no valid name."""
    return checked_name(request.path_params[parameter], parameter)


def name_in_query(request: Request, parameter: str) -> str | None:
    """Return the name in the query, if there is one. Raises `ApiError` 400 if it is no valid name."""
    name = request.query_params.get(parameter)
    return None if name is None else checked_name(name, parameter)


def checked_name(name: str, parameter: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ApiError(400, f"'{parameter}' takes 1 to 200 letters, digits and ._:@-", param=parameter)
    return name
