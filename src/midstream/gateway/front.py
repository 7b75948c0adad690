"""What every request comes through first: pages of other sites are refused, answers counted, errors answered.

Routes whose path ends in a fixed word are found here by that word, and called. Everything else goes through FastAPI,
which has the same routes, and would take longer to find one than a call takes in all.
"""

from __future__ import annotations

import time
from collections import defaultdict

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from midstream.gateway.errors import ApiError
from midstream.gateway.metrics import Metrics
from midstream.gateway.replies import answer_error, is_answer
from midstream.gateway.routes import DirectRoute


class Front:
    """`app`, counted. With `same_origin`, what a page of another site has a browser send is refused: for gateways
    without keys, where it would be let in."""

    def __init__(self, app: FastAPI, metrics: Metrics, *, same_origin: bool) -> None:
        self._app, self._metrics, self._same_origin = app, metrics, same_origin
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
        path: str = scope["path"]
        if self._same_origin:
            headers = dict(scope["headers"])
            origin = headers.get(b"origin")
            if origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b""):
                raise ApiError(403, f"a page of {origin.decode('latin-1')} may not use this gateway, which has no keys")
        for route in self._by_word.get(path.rpartition("/")[2], ()):
            match = route.path_regex.match(path)
            if match is not None and scope["method"] in (route.methods or ()):
                scope.update(app=self._app, route=route, path_params=match.groupdict())
                await route.app(scope, receive, send)
                return
        await self._app(scope, receive, send)
