"""ASGI middleware: origin check, metrics, error mapping."""

from __future__ import annotations

import functools
import ipaddress
import time

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from midstream.gateway.http.errors import CLIENT_CLOSED_REQUEST, ApiError
from midstream.gateway.http.metrics import Metrics
from midstream.gateway.http.responses import error_response, is_expected


class GatewayMiddleware:
    """Counts the requests to `app` and maps its errors to responses.

    `hosts` is for a gateway without keys: it refuses requests from pages of other sites, and requests to any host name
    but `hosts` and the loopback's (a site can make its own name resolve to this machine: DNS rebinding)."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, hosts: frozenset[str] | None) -> None:
        self._app, self._metrics, self._hosts = app, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_CLOSED_REQUEST

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._hosts is not None:
                _check_origin(scope, self._hosts)
            await self._app(scope, receive, counted_send)
        except ClientDisconnect:
            pass
        except Exception as error:
            if status == CLIENT_CLOSED_REQUEST:  # no response was started
                response = await error_response(Request(scope), error)
                await response(scope, receive, counted_send)
            if not is_expected(error):
                raise
        finally:
            route = scope.get("route")
            self._metrics.count_request(getattr(route, "path", "none"), status, time.perf_counter() - began)


def _check_origin(scope: Scope, hosts: frozenset[str]) -> None:
    """Raise `ApiError` 403 for a page of another site, or another name for this machine."""
    headers = dict(scope["headers"])
    origin, host = headers.get(b"origin"), headers.get(b"host", b"localhost")
    if origin is not None and origin.partition(b"://")[2] != host:
        raise ApiError(403, f"a page of {origin.decode('latin-1')} may not use this gateway, which has no keys")
    name = _host_name(host)
    if name not in hosts and not _is_loopback(name):
        raise ApiError(
            403, f"this gateway, which has no keys, does not answer to '{name}': set url to http://{name}, or add keys"
        )


@functools.lru_cache(maxsize=128)
def _host_name(host: bytes) -> str:
    """Return the name in a Host header, without the port."""
    name, colon, port = host.decode("latin-1").lower().rpartition(":")
    return (name if colon and port.isdigit() else host.decode("latin-1").lower()).strip("[]")


@functools.lru_cache(maxsize=128)
def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
