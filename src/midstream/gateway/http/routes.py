"""Routes as FastAPI documents them, called without what it does in between.

FastAPI resolves dependencies, of which a handler here has none, and that takes longer than most of what a call needs.
From a handler's signature it makes the OpenAPI page; the arguments are read here: names in the path, the query, and one
body of bounded size, which comes in bounded time. What does not fit is the same `RequestValidationError`.
"""

# No `from __future__ import annotations`: the annotations of handlers are looked at.

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from midstream.core.text import cleaned_json
from midstream.engines.long_text import off_loop
from midstream.gateway.config import LimitsConfig
from midstream.gateway.dialects.arguments import without_nothing
from midstream.gateway.http.bodies import has_more_than
from midstream.gateway.http.encodings import decompressor
from midstream.gateway.http.errors import ApiError

LARGE = 100_000
"""Bytes of a body from which it is read in a thread."""
MOST_TOLD = 100
"""Errors of one body that are told."""
WITH_PROMPT = ("/completions", "/responses", "/messages", "/messages/count_tokens", "/generate")
"""How the paths end whose bodies are prompts."""
_OF_CLIENTS = {"beta"}
"""Arguments in the query that clients of Anthropic's send with each call, and that change nothing."""


class DirectRoute(APIRoute):
    """A route that reads the arguments of its handler itself. Of the application's state, `limits` are the
    `LimitsConfig` that bodies are held to, `largest_prompt` the bytes that one with a prompt may have, and `admit`
    raises `ApiError` for a request of somebody unknown: it is asked first."""

    def __init__(self, path: str, endpoint: Callable[..., Awaitable[Response]], **settings: Any) -> None:
        super().__init__(path, endpoint, **settings)
        self.app = _called(endpoint, set(self.param_convertors))


def _called(endpoint: Callable[..., Awaitable[Response]], in_path: set[str]) -> ASGIApp:
    """The application that calls `endpoint` with what its signature asks for."""
    parameters = dict(inspect.signature(endpoint).parameters)
    takes_request = parameters.pop("request", None) is not None
    body = parameters.pop("body", None)
    body_type = None if body is None else TypeAdapter[Any](body.annotation)
    optional = body is not None and body.default is None
    named = [
        (name, "path" if name in in_path else "query", TypeAdapter[Any](parameter.annotation), parameter.default)
        for name, parameter in parameters.items()
    ]

    in_query = {name for name, where, _, _ in named if where == "query"} | _OF_CLIENTS

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        arguments: dict[str, Any] = {"request": request} if takes_request else {}
        for name, where, kind, default in named:
            given = request.path_params[name] if where == "path" else request.query_params.get(name)
            if given is None:
                arguments[name] = default
                continue
            try:
                arguments[name] = kind.validate_python(given)
            except ValidationError as error:
                raise _refused(error, where, name) from None
        if body_type is not None:
            request.app.state.admit(request)  # first: nobody else has us read what they send
            if scope["query_string"] and (unknown := set(request.query_params) - in_query):
                name = min(unknown)
                raise ApiError(400, f"'{name}' is not an argument of this address; leave it out", param=name)
            content = await _content(request)
            arguments["body"] = None if optional and not content else await _parsed(request, body_type, content)
        response = await endpoint(**arguments)
        await response(scope, receive, send)

    return app


async def _content(request: Request) -> bytes:
    """The body, decompressed. Raises `ApiError`: 413 and 408 when it is too large or too slow, 400 when its prompt
    cannot fit, 415 when it is not JSON or in an encoding that is not read here."""
    limits: LimitsConfig = request.app.state.limits
    pieces: list[bytes] = []
    size, most, more = 0, round(limits.body_mb * 1e6), True
    prompt = request.app.state.largest_prompt if request.url.path.endswith(WITH_PROMPT) else math.inf
    kind, length = request.headers.get("content-type", "json"), request.headers.get("content-length", "0")
    too_large = ApiError(413, f"a request may have {limits.body_mb:g} MB; this one has more")
    if prompt < most:
        told = f"this body has more than {prompt / 1e6:.1f} MB: its prompt does not fit the context, and nothing is cut"
        most, too_large = round(prompt), ApiError(400, told, code="context_length_exceeded")
    if int(length) > most:
        raise too_large
    packed = decompressor(request.headers.get("content-encoding", ""))
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(499, "the client hung up", code="client_closed_request")
                piece = message.get("body", b"")
                more = message.get("more_body", False)
                for part in (piece,) if packed is None else packed.parts(piece):
                    pieces.append(part)
                    size += len(part)
                    if size > most:
                        raise too_large
                    if packed is not None:
                        await asyncio.sleep(0)  # others take their turns while much is decompressed
            if packed is not None:
                packed.end()
    except TimeoutError:
        raise ApiError(408, f"the request was not whole within {limits.body_timeout_s:g} s") from None
    if size and "json" not in kind.lower():
        raise ApiError(415, f"the body must be JSON: send 'Content-Type: application/json', not '{kind[:100]}'")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _parsed(request: Request, body: TypeAdapter[Any], content: bytes) -> Any:
    """What `content` says. A large body is read in a thread, and refused (`ApiError` 413) when it has more structure
    than may be read at once."""
    if len(content) <= LARGE:
        return _read(body, content)
    most = request.app.state.limits.body_objects
    if await off_loop(has_more_than, content, most):
        raise ApiError(413, f"a request may have {most} objects, lists and fields; this one has more")
    return await off_loop(_read, body, content)


def _read(body: TypeAdapter[Any], content: bytes) -> Any:
    try:
        return body.validate_json(content)
    except ValidationError as error:
        problem = error
    # Python's reader takes half of a surrogate pair, as clients cut text anywhere, and knows better what is wrong.
    try:
        value = cleaned_json(json.loads(content))
    except (ValueError, RecursionError) as error:  # not JSON, not even text, or nested too deeply
        item = {"type": "json_invalid", "loc": ("body",), "msg": str(error), "input": {}}
        raise RequestValidationError([item]) from None
    # What asks for nothing is as if left out, whatever it is called. One that is needed is told of as it was sent.
    while without_nothing(value, problem.errors(include_url=False)) or problem.errors()[0]["type"] == "json_invalid":
        try:
            return body.validate_python(value)
        except ValidationError as error:
            if error.errors()[0]["type"] == "missing" != problem.errors()[0]["type"] != "json_invalid":
                break
            problem = error
    raise _refused(problem, "body")


def _refused(error: ValidationError, *where: str) -> RequestValidationError:
    found = error.errors(include_url=False, include_input=error.error_count() <= MOST_TOLD)[:MOST_TOLD]
    return RequestValidationError([{**one, "loc": (*where, *one["loc"])} for one in found])
