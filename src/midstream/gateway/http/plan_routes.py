"""Questions of plans, listed and answered over HTTP by the operator's programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from midstream.core.errors import RunError
from midstream.gateway.dialects.plain_json import AnyJson
from midstream.gateway.dialects.shared import Body
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.identity import caller_of
from midstream.gateway.http.responses import json_response
from midstream.gateway.http.route import ApiRoute, name_in_path, name_in_query
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
    yield ApiRoute("GET", "/plans/questions", handlers.questions, query=("run",))
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
        caller_of(request, self._gateway).require_admin()
        if self._gateway.plans is None:
            raise ApiError(404, "this gateway knows no plans; set `plans` to their store in its config")
        return self._gateway.plans

    async def questions(self, request: Request) -> Response:
        executor, run = self.executor(request), name_in_query(request, "run")
        return json_response({"questions": [_described(one) for one in await executor.questions(run)]})

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
