"""The endpoints that agents call with OpenAI's or Anthropic's client, at the root and under a trajectory's own path."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from midstream.gateway.dialects import anthropic, chat, completions, generate, response_object, responses
from midstream.gateway.dialects.shared import Body
from midstream.gateway.dialects.tools import ReplyRules
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.cancellation import unless_disconnected
from midstream.gateway.http.event_stream import EventStream
from midstream.gateway.http.identity import AgentRequest, agent_request, caller_of
from midstream.gateway.http.responses import json_response
from midstream.gateway.http.route import ApiRoute, name_in_path
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.answer import Answer
from midstream.gateway.sessions.call_request import CallRequest, Piece

TRAJECTORY_PATH = "/{trajectory_uid}/{prompt_uid}"
_Handle = Callable[[AgentRequest, Any], Awaitable[Response]]


def model_routes(gateway: Gateway, reader: BodyReader) -> Iterator[BaseRoute]:
    """Yield the routes, those that are called most first: Starlette tries them in order."""
    handlers = _Handlers(gateway)
    calls: tuple[tuple[str, type[Body], _Handle], ...] = (
        ("/v1/chat/completions", chat.ChatRequest, handlers.chat_completion),
        ("/v1/messages", anthropic.MessagesRequest, handlers.message),
        ("/v1/responses", responses.ResponseRequest, handlers.response),
        ("/v1/completions", completions.CompletionRequest, handlers.text_completion),
        ("/inference/v1/generate", generate.GenerateRequest, handlers.generate),
        ("/v1/messages/count_tokens", anthropic.CountRequest, handlers.count_tokens),
    )
    route = partial(ApiRoute, "POST", reader=reader, identify=lambda r: caller_of(r, gateway), is_prompt=True)
    for path, body, handle in calls:
        yield route(f"{TRAJECTORY_PATH}{path}", _under_path(gateway, handle), body)
        yield route(path, _at_root(gateway, handle), body)
    for prefix in ("", TRAJECTORY_PATH):
        yield ApiRoute("GET", f"{prefix}/v1/models", handlers.models)
        yield ApiRoute("GET", f"{prefix}/v1/models/{{name:path}}", handlers.model)


def _at_root(gateway: Gateway, handle: _Handle) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handler(request: Request, body: Any) -> Response:
        return await handle(await agent_request(request, gateway), body)

    return handler


def _under_path(gateway: Gateway, handle: _Handle) -> Callable[[Request, Any], Awaitable[Response]]:
    async def handler(request: Request, body: Any) -> Response:
        uids = name_in_path(request, "trajectory_uid"), name_in_path(request, "prompt_uid")
        return await handle(await agent_request(request, gateway, *uids), body)

    return handler


class _Handlers:
    """One method an endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._tokenizer = gateway, gateway.tokenizer

    async def chat_completion(self, agent: AgentRequest, body: chat.ChatRequest) -> Response:
        request, rules = chat.parse(body, self._gateway, agent.active)
        events = partial(chat.chunks, body, tokenizer=self._tokenizer) if body.stream else None
        whole = partial(chat.body, body, tokenizer=self._tokenizer)
        return await self._answer(agent, request, rules, events, whole)

    async def text_completion(self, agent: AgentRequest, body: completions.CompletionRequest) -> Response:
        request = await completions.parse(body, self._gateway, agent.active)
        events = partial(completions.chunks, body, tokenizer=self._tokenizer) if body.stream else None
        whole = partial(completions.body, body, tokenizer=self._tokenizer)
        return await self._answer(agent, request, None, events, whole)

    async def generate(self, agent: AgentRequest, body: generate.GenerateRequest) -> Response:
        request = generate.parse(body, self._gateway, agent.active)
        return await self._answer(agent, request, None, None, partial(generate.body, body))

    async def response(self, agent: AgentRequest, body: responses.ResponseRequest) -> Response:
        request, rules = responses.parse(body, self._gateway, agent.active)
        sampling = self._gateway.calls.effective_sampling(agent.active, request)
        events = partial(response_object.events, body, sampling=sampling) if body.stream else None
        return await self._answer(
            agent, request, rules, events, lambda answers: response_object.body(body, answers[0], sampling)
        )

    async def message(self, agent: AgentRequest, body: anthropic.MessagesRequest) -> Response:
        request, rules = anthropic.parse(body, self._gateway, agent.active)
        events = partial(anthropic.events, body) if body.stream else None
        return await self._answer(
            agent, request, rules, events, lambda answers: anthropic.body(body, answers[0]), "anthropic"
        )

    async def count_tokens(self, agent: AgentRequest, body: anthropic.CountRequest) -> Response:
        self._gateway.model_name(body.model, agent.active)
        count = await self._gateway.calls.count_tokens(anthropic.prompt(body), agent.active, agent.caller)
        return json_response({"input_tokens": count})

    async def models(self, request: Request) -> Response:
        caller_of(request, self._gateway)
        names = self._gateway.names
        page = {"first_id": names[0], "last_id": names[-1], "has_more": False}
        return json_response({"object": "list", "data": [self._model(name) for name in names], **page})

    async def model(self, request: Request) -> Response:
        caller_of(request, self._gateway)
        return json_response(self._model(self._gateway.model_name(request.path_params["name"])))

    async def _answer(
        self,
        agent: AgentRequest,
        request: CallRequest,
        rules: ReplyRules | None,
        events: Callable[[AsyncGenerator[Piece]], AsyncGenerator[bytes]] | None,
        whole: Callable[[list[Answer]], Any],
        dialect: str = "openai",
    ) -> Response:
        """Answer `request` under `rules`: as a stream of `events`, or with the body that `whole` makes."""
        calls, active, caller = self._gateway.calls, agent.active, agent.caller
        request = agent.with_headers(request)
        await calls.require_fit(active, request)
        if rules is not None:
            request = await rules.applied_to(request, self._tokenizer)
        if events is not None:
            stream = events(calls.stream(active, request, caller))
            return EventStream(stream, dialect, self._gateway.config.limits.ping_s)
        return json_response(whole(await unless_disconnected(agent.http, calls.answer(active, request, caller))))

    def _model(self, name: str) -> dict[str, Any]:
        """Return the description of a model, for OpenAI's and for Anthropic's clients."""
        engine = self._gateway.role_engine.engine
        return {
            "id": name,
            "object": "model",
            "type": "model",
            "created": 0,
            "created_at": "1970-01-01T00:00:00Z",
            "owned_by": "midstream",
            "display_name": name,
            "lifecycle": "active",
            "max_model_len": engine.context_length,
            "policy_version": self._gateway.policy_version(name),
        }
