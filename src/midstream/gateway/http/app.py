"""The ASGI application: which handler answers what, and who is asking."""

# No `from __future__ import annotations`: FastAPI must see the body classes that handlers are made with.

import asyncio
import base64
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from midstream import __version__
from midstream.core.errors import MidstreamError
from midstream.engines.long_text import LONG, off_loop
from midstream.gateway.dialects import anthropic, chat, completions, response_object, responses
from midstream.gateway.dialects.shared import Body
from midstream.gateway.http import requests
from midstream.gateway.http.disconnect import until_gone
from midstream.gateway.http.docs_page import HEADERS, docs_page
from midstream.gateway.http.errors import ApiError, openai_body
from midstream.gateway.http.middleware import GatewayMiddleware
from midstream.gateway.http.openapi import describe
from midstream.gateway.http.replies import EventStream, answer_error, as_json
from midstream.gateway.http.routes import DirectRoute
from midstream.gateway.limits.callers import Caller
from midstream.gateway.limits.length import check_texts, largest_body
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.answer import Answer
from midstream.gateway.sessions.asks import Ask, Piece
from midstream.gateway.sessions.endpoints import Endpoints

T = TypeVar("T")
NAME = r"[A-Za-z0-9._:@-]{1,200}"
Uid = Annotated[str, Path(pattern=f"^{NAME}$")]
TRAJECTORY_HEADER = "X-Midstream-Trajectory"
ROLE_HEADER = "X-Midstream-Role"
RETRY_HEADER = "X-Stainless-Retry-Count"
"""How often a client of OpenAI's or Anthropic's has made a call before."""
CALLER = "midstream.caller"
"""Where in a request's scope it stands who makes it."""


def make_app(gateway: Gateway) -> ASGIApp:
    """The application that serves `gateway`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(gateway.watch())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(gateway.kept.servers.leave)

    app = FastAPI(
        title="Midstream gateway",
        version=__version__,
        description="Any agent that speaks OpenAI's or Anthropic's API, recorded token for token.",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's own pages load scripts from elsewhere, and know nothing of keys
    )
    app.router.route_class = DirectRoute
    app.state.limits = gateway.config.limits
    # In a rollout other roles may have engines with other contexts.
    held = largest_body(gateway.tokenizer, gateway.role_engine.engine.context_length)
    app.state.largest_prompt = math.inf if gateway.store is None else held
    app.state.admit = partial(_caller, gateway=gateway)
    for kind in (MidstreamError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer_error)
    _add_model_calls(app, gateway)
    _add_own(app, Endpoints(gateway))
    _add_docs(app, gateway)
    config = gateway.config
    own = frozenset({config.host, (urlsplit(config.url).hostname or "") if config.url else config.host})
    return GatewayMiddleware(app, gateway.metrics, hosts=None if config.keys else own)


def _add_model_calls(app: FastAPI, gateway: Gateway) -> None:
    """What agents call: at the root, where the token or a header names the trajectory, and under its own path."""

    def both(path: str, model: type[Body], handle: Callable[[_Calling, Any], Awaitable[Response]]) -> None:
        async def at_root(request: Request, body: model) -> Response:  # type: ignore[valid-type]
            return await handle(await _calling(request, gateway, None, None), body)

        async def scoped(request: Request, trajectory_uid: Uid, prompt_uid: Uid, body: model) -> Response:  # type: ignore[valid-type]
            return await handle(await _calling(request, gateway, trajectory_uid, prompt_uid), body)

        name = path.removeprefix("/v1/").replace("/", " ")
        app.add_api_route(path, at_root, methods=["POST"], name=name, response_model=None)
        under = "/{trajectory_uid}/{prompt_uid}" + path
        app.add_api_route(under, scoped, methods=["POST"], name=f"{name} of a trajectory", response_model=None)

    async def answered(
        calling: _Calling,
        ask: Ask,
        events: Callable[[AsyncGenerator[Piece]], AsyncGenerator[bytes]] | None,
        whole: Callable[[list[Answer]], Any],
        dialect: str = "openai",
    ) -> Response:
        """The answers to `ask`: as a stream of `events` where those are wanted, else as `whole` puts them."""
        ask = _keyed(calling.request, ask)
        await gateway.calls.must_fit(calling.live, ask)
        if events is not None:
            made = events(gateway.calls.stream(calling.live, ask, calling.caller))
            return EventStream(made, dialect, gateway.config.limits.ping_s)
        return as_json(whole(await until_gone(calling.request, gateway.calls.ask(calling.live, ask, calling.caller))))

    async def chat_completions(calling: _Calling, body: chat.ChatRequest) -> Response:
        ask = chat.parse(body, gateway, calling.live)
        events = partial(chat.chunks, body, tokenizer=gateway.tokenizer) if body.stream else None
        return await answered(calling, ask, events, partial(chat.body, body, tokenizer=gateway.tokenizer))

    async def text_completions(calling: _Calling, body: completions.CompletionRequest) -> Response:
        if isinstance(body.prompt, str):
            await check_texts(gateway.tokenizer, gateway.role_engine.engine.context_length, [body.prompt])
        if len(body.prompt) > LONG:
            ask = await off_loop(completions.parse, body, gateway, calling.live)
        else:
            ask = completions.parse(body, gateway, calling.live)
        events = partial(completions.chunks, body, tokenizer=gateway.tokenizer) if body.stream else None
        return await answered(calling, ask, events, partial(completions.body, body, tokenizer=gateway.tokenizer))

    async def make_response(calling: _Calling, body: responses.ResponseRequest) -> Response:
        ask = responses.parse(body, gateway, calling.live)
        sampling = gateway.calls.sampled_as(calling.live, ask)
        events = partial(response_object.events, body, sampling=sampling) if body.stream else None
        return await answered(calling, ask, events, lambda answers: response_object.body(body, answers[0], sampling))

    async def make_message(calling: _Calling, body: anthropic.MessagesRequest) -> Response:
        ask, events = anthropic.parse(body, gateway, calling.live), None
        if body.stream:
            events = partial(anthropic.events, body)
        return await answered(calling, ask, events, lambda answers: anthropic.body(body, answers[0]), "anthropic")

    async def count_tokens(calling: _Calling, body: anthropic.CountRequest) -> Response:
        gateway.model_name(body.model, calling.live)
        call = anthropic.prompt(body, gateway)
        return as_json({"input_tokens": await gateway.count_tokens(call, calling.live, calling.caller)})

    both("/v1/chat/completions", chat.ChatRequest, chat_completions)
    both("/v1/completions", completions.CompletionRequest, text_completions)
    both("/v1/responses", responses.ResponseRequest, make_response)
    both("/v1/messages", anthropic.MessagesRequest, make_message)
    both("/v1/messages/count_tokens", anthropic.CountRequest, count_tokens)

    async def models(request: Request) -> Response:
        _caller(request, gateway)
        names = {"first_id": gateway.names[0], "last_id": gateway.names[-1], "has_more": False}
        return as_json({"object": "list", "data": [_model(name, gateway) for name in gateway.names], **names})

    async def model(request: Request, name: str) -> Response:
        _caller(request, gateway)
        return as_json(_model(gateway.model_name(name), gateway))

    async def scoped_models(request: Request, trajectory_uid: Uid, prompt_uid: Uid) -> Response:
        return await models(request)

    async def scoped_model(request: Request, trajectory_uid: Uid, prompt_uid: Uid, name: str) -> Response:
        return await model(request, name)

    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"])
    app.add_api_route("/{trajectory_uid}/{prompt_uid}/v1/models", scoped_models, methods=["GET"])
    app.add_api_route("/{trajectory_uid}/{prompt_uid}/v1/models/{name:path}", scoped_model, methods=["GET"])


def _add_own(app: FastAPI, own: Endpoints) -> None:
    """The gateway's own endpoints."""
    gateway = own.gateway

    async def health() -> Response:
        return as_json({"status": "ok"})

    async def ready() -> Response:
        problem = own.not_ready()
        return as_json({"status": problem or "ready"}, 503 if problem else 200)

    async def metrics(request: Request) -> Response:
        _caller(request, gateway)
        page = await asyncio.to_thread(gateway.metrics.page)
        return Response(page, media_type="text/plain; version=0.0.4")

    async def init_trajectory(request: Request, body: requests.OpenRequest | None = None) -> Response:
        opened = await own.open(
            body or requests.OpenRequest(), _caller(request, gateway), _base(request), _key(request)
        )
        return as_json(opened.model_dump())

    async def register(
        request: Request, trajectory_uid: Uid, prompt_uid: Uid, body: requests.RegisterRequest | None = None
    ) -> Response:
        caller = _caller(request, gateway)
        await own.register(trajectory_uid, prompt_uid, body or requests.RegisterRequest(), caller)
        return as_json({"status": "ok", "trajectory_uid": trajectory_uid, "prompt_uid": prompt_uid})

    async def complete(request: Request, trajectory_uid: Uid, body: requests.CompleteRequest | None = None) -> Response:
        caller, told = _caller(request, gateway), body or requests.CompleteRequest()
        return as_json(await own.complete(trajectory_uid, None, told, caller, _key(request)))

    async def complete_scoped(
        request: Request, trajectory_uid: Uid, prompt_uid: Uid, body: requests.CompleteRequest | None = None
    ) -> Response:
        caller, told = _caller(request, gateway), body or requests.CompleteRequest()
        return as_json(await own.complete(trajectory_uid, prompt_uid, told, caller, _key(request)))

    async def complete_own(request: Request, body: requests.CompleteRequest | None = None) -> Response:
        return await complete(request, _meant(request, _caller(request, gateway)), body)

    async def heartbeat(request: Request, trajectory_uid: Uid) -> Response:
        calling = await _calling(request, gateway, trajectory_uid, None)
        return as_json({"status": "ok", "steps": len(calling.live.recorder.finished())})

    async def trajectory(request: Request, trajectory_uid: Uid) -> Response:
        return as_json(await own.describe(trajectory_uid, _caller(request, gateway)))

    async def generate(request: Request, body: requests.GenerateRequest) -> Response:
        caller = _caller(request, gateway)
        return as_json(await until_gone(request, own.generate(body, caller, _key(request))))

    async def submit_steps(
        request: Request,
        body: requests.SubmitRequest,
        channel: Annotated[str | None, Query(pattern=f"^{NAME}$")] = None,
    ) -> Response:
        return as_json(await own.submit(body, channel, _caller(request, gateway)))

    async def compute_reward(request: Request, body: requests.RewardRequest) -> Response:
        return as_json(await own.compute_reward(body, _caller(request, gateway)))

    async def feedback(request: Request, trajectory_uid: Uid, body: requests.FeedbackRequest) -> Response:
        return as_json(await own.feedback(trajectory_uid, body, _caller(request, gateway), _key(request)))

    async def curate(request: Request, trajectory_uid: Uid, body: requests.CurationRequest) -> Response:
        return as_json(await own.curate(trajectory_uid, body, _caller(request, gateway)))

    async def pause(request: Request) -> Response:
        _caller(request, gateway).must_be_admin()
        gateway.gate.pause("asked")
        return as_json({"status": "paused", "under_way": gateway.gate.inside})

    async def resume(request: Request) -> Response:
        _caller(request, gateway).must_be_admin()
        gateway.gate.resume("asked")
        return as_json({"status": "paused" if gateway.gate.paused else "ok"})

    under = "/{trajectory_uid}/{prompt_uid}/v1"
    for method, path, handler in (
        ("GET", "/health", health),
        ("GET", "/ready", ready),
        ("GET", "/metrics", metrics),
        ("POST", "/init_trajectory", init_trajectory),
        ("POST", f"{under}/register_trajectory", register),
        ("POST", f"{under}/complete_trajectory", complete_scoped),
        ("POST", "/complete_trajectory/{trajectory_uid}", complete),
        ("POST", "/complete_trajectory", complete_own),
        ("POST", "/trajectories/{trajectory_uid}/heartbeat", heartbeat),
        ("GET", "/trajectories/{trajectory_uid}", trajectory),
        ("POST", "/trajectories/{trajectory_uid}/feedback", feedback),
        ("POST", "/trajectories/{trajectory_uid}/curation", curate),
        ("POST", "/generate", generate),
        ("POST", "/submit_steps", submit_steps),
        ("POST", "/compute_reward", compute_reward),
        ("POST", "/pause", pause),
        ("POST", "/resume", resume),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)


def _add_docs(app: FastAPI, gateway: Gateway) -> None:
    """The description of the API, for programs and as a page. Behind the keys where there are any: browsers send one as
    a password."""

    def described(answer: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            try:
                password = _password(request)
                gateway.caller(*([password] if password else _secrets(request)))
            except ApiError as error:
                ask = {"WWW-Authenticate": 'Basic realm="Midstream gateway: a key is the password", charset="UTF-8"'}
                return as_json(openai_body(error), error.status, ask)
            return answer()

        return handle

    app.add_route("/openapi.json", described(lambda: as_json(describe(app))))
    app.add_route("/docs", described(lambda: HTMLResponse(docs_page(describe(app)), headers=HEADERS)))


@dataclass(frozen=True, slots=True)
class _Calling:
    """A request of an agent: the trajectory it belongs to, and who calls."""

    request: Request
    live: ActiveTrajectory
    caller: Caller


async def _calling(request: Request, gateway: Gateway, uid: str | None, prompt_uid: str | None) -> _Calling:
    """`request`, of the trajectory of its path (`uid`), of its token, or of a header."""
    caller = _caller(request, gateway)
    uid = uid or _meant(request, caller)
    caller.must_reach(uid)
    return _Calling(request, await gateway.trajectories.get(uid, prompt_uid), caller)


def _meant(request: Request, caller: Caller) -> str:
    """The trajectory that a request at the root is about, open or ended: that of its token, or of a header."""
    uid = caller.trajectory_uid or _named(request, TRAJECTORY_HEADER)
    if uid is None:
        raise ApiError(
            400,
            "no trajectory: POST /init_trajectory gives a base_url and a token; use either, or name one in the header "
            f"{TRAJECTORY_HEADER}",
            code="no_trajectory",
        )
    return uid


def _caller(request: Request, gateway: Gateway) -> Caller:
    """Who makes a request; looked up once."""
    known = request.scope.get(CALLER)
    if known is None:
        known = request.scope[CALLER] = gateway.caller(*_secrets(request))
    return known


def _secrets(request: Request) -> list[str]:
    """The keys or tokens that came with a request: clients may send one of their own beside that of the gateway."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    given = [value.strip() if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
    return [secret for secret in given if secret]


def _password(request: Request) -> str | None:
    """The password of a request with basic authentication, as browsers send it."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        decoded = base64.b64decode(value, validate=True).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        return None
    return decoded.partition(":")[2] or None


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ApiError(400, "the header Idempotency-Key takes 1 to 255 printable ASCII characters")
    return key


def _named(request: Request, header: str) -> str | None:
    """The name in a header of ours."""
    name = request.headers.get(header)
    if name is not None and not re.fullmatch(NAME, name):
        raise ApiError(400, f"the header {header} takes 1 to 200 letters, digits and ._:@-")
    return name


def _keyed(request: Request, ask: Ask) -> Ask:
    """`ask` with what the request's headers say of it."""
    retry = request.headers.get(RETRY_HEADER, "")
    return replace(
        ask,
        key=_key(request),
        role=_named(request, ROLE_HEADER),
        retry=int(retry) if retry.isascii() and retry.isdigit() else None,
    )


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _model(name: str, gateway: Gateway) -> dict[str, Any]:
    """A model, as both OpenAI's and Anthropic's clients read it."""
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "owned_by": "midstream",
        "display_name": name,
        "lifecycle": "active",
        "max_model_len": gateway.role_engine.engine.context_length,
        "policy_version": gateway.role_engine.engine.policy_version,
    }
