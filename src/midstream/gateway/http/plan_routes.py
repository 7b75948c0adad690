"""Plans over HTTP: their questions, for the operator's programs and in a browser at `/plans`, and events of runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from midstream.core.errors import RunError
from midstream.gateway.dialects.plain_json import AnyJson
from midstream.gateway.dialects.shared import Body
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.browser import page_endpoint, require_own_form
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.identity import caller_of
from midstream.gateway.http.plan_events import events_response
from midstream.gateway.http.questions_page import HEADERS, answer_of, questions_page, read_form
from midstream.gateway.http.responses import json_response
from midstream.gateway.http.route import ApiRoute, name_in_path, name_in_query
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway
from midstream.plans import AgentExecutor, OpenQuestion
from midstream.plans.errors import AnswerRefused, NoSuchQuestion, NoSuchRun


class AnswerRequest(Body):
    """The answer to a question of a plan."""

    answer: AnyJson
    """What fits the question's schema."""


def plan_routes(gateway: Gateway, reader: BodyReader) -> Iterator[BaseRoute]:
    """Yield the routes."""
    handlers = _Handlers(gateway)
    pages = _Pages(gateway, reader)
    yield Route("/plans", page_endpoint(gateway, pages.show), methods=["GET"])
    yield Route("/plans", page_endpoint(gateway, pages.submit), methods=["POST"])
    yield ApiRoute("GET", "/plans/questions", handlers.questions, query=("run",))
    yield ApiRoute("GET", "/plans/{run}/events", handlers.events, query=("after",))
    yield ApiRoute(
        "POST",
        "/plans/{run}/questions/{question}",
        handlers.answer,
        AnswerRequest,
        reader=reader,
        identify=handlers.executor,
    )


class _Handlers:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def executor(self, request: Request) -> AgentExecutor:
        """Return the executor whose plans are served. Raises `ApiError` 403 without a key, and 404 without plans."""
        return _executor(self._gateway, caller_of(request, self._gateway))

    async def questions(self, request: Request) -> Response:
        executor, run = self.executor(request), name_in_query(request, "run")
        return json_response({"questions": [_described(one) for one in await executor.questions(run)]})

    async def events(self, request: Request) -> Response:
        executor = self.executor(request)
        return await events_response(request, self._gateway, executor, name_in_path(request, "run"))

    async def answer(self, request: Request, body: AnswerRequest) -> Response:
        run, question = name_in_path(request, "run"), name_in_path(request, "question")
        try:
            await self.executor(request).answer(run, question, body.answer)
        except (NoSuchRun, NoSuchQuestion) as error:
            raise ApiError(404, error.message) from None
        except AnswerRefused as error:
            raise ApiError(400, str(error), code="answer_refused", param="answer") from None
        except RunError as error:
            raise ApiError(503, error.message, retry_after_s=1) from None
        return json_response({"status": "ok", "run": run, "question": question})


class _Pages:
    """The page with a form for each open question."""

    def __init__(self, gateway: Gateway, reader: BodyReader) -> None:
        self._gateway, self._reader = gateway, reader

    async def show(self, request: Request, caller: Caller) -> Response:
        return await self._page(_executor(self._gateway, caller), answered=name_in_query(request, "answered") or "")

    async def submit(self, request: Request, caller: Caller) -> Response:
        """Answer a question and show the rest; a refused answer shows the page again, with the reason."""
        executor = _executor(self._gateway, caller)
        require_own_form(request, self._gateway)
        fields = read_form(await self._reader.content(request, form=True))
        run, key = fields.get("run", ""), fields.get("question", "")
        asked = next((one for one in await executor.questions(run) if one.id == key), None)
        if asked is None:
            return await self._page(executor, 404, problem=f"Run '{run}' has no open question '{key}'.", filled=fields)
        try:
            await executor.answer(run, key, answer_of(fields, asked.schema))
        except (NoSuchRun, NoSuchQuestion) as error:
            return await self._page(executor, 404, problem=error.message, filled=fields)
        except AnswerRefused as error:
            return await self._page(executor, 400, problem=error.message, filled=fields)
        except RunError as error:
            raise ApiError(503, error.message, retry_after_s=1) from None
        return RedirectResponse("plans?" + urlencode({"answered": run}), 303)

    async def _page(self, executor: AgentExecutor, status: int = 200, **shown: Any) -> Response:
        page = questions_page(await executor.questions(), **shown)
        return Response(page.encode(errors="replace"), status, HEADERS, "text/html")


def _executor(gateway: Gateway, caller: Caller) -> AgentExecutor:
    caller.require_admin()
    if gateway.plans is None:
        raise ApiError(404, "this gateway knows no plans; set `plans` to their store in its config")
    return gateway.plans


def _described(one: OpenQuestion) -> dict[str, Any]:
    return {
        "run": one.run,
        "question": one.id,
        "node": one.path,
        "prompt": one.prompt,
        "schema": one.schema,
        "asked_at": one.asked_at,
        "expires_at": one.expires_at,
    }
