"""What every request comes through first: pages of other sites are refused, answers counted, errors answered.

Routes whose path ends in a fixed word are found here by that word, and called. Everything else goes through FastAPI,
which has the same routes, and would take longer to find one than a call takes in all.
"""

from __future__ import annotations

import functools
import ipaddress
import time
from collections import defaultdict

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.metrics import Metrics
from midstream.gateway.http.replies import answer_error, is_answer
from midstream.gateway.http.routes import DirectRoute


class GatewayMiddleware:
    """`app`, counted. With `hosts`, the names this machine may be called by beside those of the loopback, what a page
    of another site has a browser send is refused: for gateways without keys, where it would be let in. A page can have
    a name of its own mean this machine, so the name that was asked for counts, and not only the page's."""

    def __init__(self, app: FastAPI, metrics: Metrics, *, hosts: frozenset[str] | None) -> None:
        self._app, self._metrics, self._hosts = app, metrics, hosts
        self._by_word: defaultdict[str, list[DirectRoute]] = defaultdict(list)
        for route in app.routes:
            word = route.path.rpartition("/")[2] if isinstance(route, DirectRoute) else "{"
            if isinstance(route, DirectRoute) and "{" not in word:
                self._by_word[word].append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # that of a client who hung up

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, sent)
        except ClientDisconnect:
            pass
        except Exception as error:
            if status == 499:
                answer = await answer_error(Request(scope), error)
                await answer(scope, receive, sent)
            if not is_answer(error):
                raise
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "none"), status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._hosts is not None:
            headers = dict(scope["headers"])
            origin, host = headers.get(b"origin"), headers.get(b"host", b"localhost")
            if origin is not None and origin.partition(b"://")[2] != host:
                raise ApiError(403, f"a page of {origin.decode('latin-1')} may not use this gateway, which has no keys")
            name = _name(host)
            if name not in self._hosts and not _is_loopback(name):
                raise ApiError(
                    403,
                    f"this gateway, which has no keys, is not called '{name}': set url to http://{name}, or add keys",
                )
        path: str = scope["path"]
        directly = () if scope.get("root_path") else self._by_word.get(path.rpartition("/")[2], ())
        for route in directly:
            match = route.path_regex.match(path)
            if match is not None and scope["method"] in (route.methods or ()):
                scope.update(app=self._app, route=route, path_params=match.groupdict())
                await route.app(scope, receive, send)
                return
        await self._app(scope, receive, send)


@functools.lru_cache(maxsize=128)
def _name(host: bytes) -> str:
    """The name in a Host header, without the port."""
    name, colon, port = host.decode("latin-1").lower().rpartition(":")
    return (name if colon and port.isdigit() else host.decode("latin-1").lower()).strip("[]")


@functools.lru_cache(maxsize=128)
def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
