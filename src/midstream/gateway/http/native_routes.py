"""The gateway's own endpoints: trajectories, white-box agents, people, operation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from midstream.gateway.http import request_bodies as bodies
from midstream.gateway.http.body import BodyReader
from midstream.gateway.http.cancellation import unless_disconnected
from midstream.gateway.http.identity import agent_request, caller_of, idempotency_key, trajectory_of
from midstream.gateway.http.model_routes import TRAJECTORY_PATH
from midstream.gateway.http.responses import json_response
from midstream.gateway.http.route import ApiRoute, name_in_path, name_in_query
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway
from midstream.gateway.sessions import annotations, lifecycle, white_box


def native_routes(gateway: Gateway, reader: BodyReader) -> Iterator[BaseRoute]:
    """Yield the routes."""
    handlers = _Handlers(gateway)
    post = partial(ApiRoute, "POST", reader=reader, identify=handlers.caller)
    yield post("/submit_steps", handlers.submit_steps, bodies.SubmitRequest, query=("channel",))
    yield post("/generate", handlers.generate, bodies.GenerateRequest, is_prompt=True)
    yield post("/init_trajectory", handlers.open, bodies.OpenRequest, optional=True)
    yield post(f"{TRAJECTORY_PATH}/v1/register_trajectory", handlers.register, bodies.RegisterRequest, optional=True)
    complete = partial(post, body=bodies.CompleteRequest, optional=True)
    yield complete(f"{TRAJECTORY_PATH}/v1/complete_trajectory", handlers.complete)
    yield complete("/complete_trajectory/{trajectory_uid}", handlers.complete)
    yield complete("/complete_trajectory", handlers.complete_own)
    yield post("/trajectories/{trajectory_uid}/heartbeat", handlers.heartbeat)
    yield post("/trajectories/{trajectory_uid}/feedback", handlers.feedback, bodies.FeedbackRequest)
    yield post("/trajectories/{trajectory_uid}/curation", handlers.curate, bodies.CurationRequest)
    yield ApiRoute("GET", "/trajectories/{trajectory_uid}", handlers.describe)
    yield post("/compute_reward", handlers.compute_reward, bodies.RewardRequest)
    yield ApiRoute("GET", "/health", handlers.health)
    yield ApiRoute("GET", "/ready", handlers.ready)
    yield ApiRoute("GET", "/metrics", handlers.metrics)
    yield post("/pause", handlers.pause)
    yield post("/resume", handlers.resume)


class _Handlers:
    """One method an endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def caller(self, request: Request) -> Caller:
        return caller_of(request, self._gateway)

    async def open(self, request: Request, body: bodies.OpenRequest | None) -> Response:
        opened = await lifecycle.open_trajectory(
            self._gateway,
            body or bodies.OpenRequest(),
            self.caller(request),
            base_url=str(request.base_url).rstrip("/"),
            key=idempotency_key(request),
        )
        return json_response(opened.model_dump())

    async def register(self, request: Request, body: bodies.RegisterRequest | None) -> Response:
        uid, prompt_uid = name_in_path(request, "trajectory_uid"), name_in_path(request, "prompt_uid")
        given = body or bodies.RegisterRequest()
        await lifecycle.register(self._gateway, uid, prompt_uid, given, self.caller(request))
        return json_response({"status": "ok", "trajectory_uid": uid, "prompt_uid": prompt_uid})

    async def complete(self, request: Request, body: bodies.CompleteRequest | None) -> Response:
        group = name_in_path(request, "prompt_uid") if "prompt_uid" in request.path_params else None
        return await self._complete(request, name_in_path(request, "trajectory_uid"), group, body)

    async def complete_own(self, request: Request, body: bodies.CompleteRequest | None) -> Response:
        return await self._complete(request, trajectory_of(request, self.caller(request)), None, body)

    async def _complete(
        self, request: Request, uid: str, prompt_uid: str | None, body: bodies.CompleteRequest | None
    ) -> Response:
        caller, key = self.caller(request), idempotency_key(request)
        given = body or bodies.CompleteRequest()
        return json_response(await lifecycle.complete(self._gateway, uid, prompt_uid, given, caller, key))

    async def heartbeat(self, request: Request) -> Response:
        agent = await agent_request(request, self._gateway, name_in_path(request, "trajectory_uid"))
        return json_response({"status": "ok", "steps": len(agent.active.recorder.finished())})

    async def describe(self, request: Request) -> Response:
        uid = name_in_path(request, "trajectory_uid")
        return json_response(await lifecycle.describe(self._gateway, uid, self.caller(request)))

    async def generate(self, request: Request, body: bodies.GenerateRequest) -> Response:
        work = white_box.generate(self._gateway, body, self.caller(request), idempotency_key(request))
        return json_response(await unless_disconnected(request, work))

    async def submit_steps(self, request: Request, body: bodies.SubmitRequest) -> Response:
        channel = name_in_query(request, "channel")
        return json_response(await white_box.submit(self._gateway, body, channel, self.caller(request)))

    async def compute_reward(self, request: Request, body: bodies.RewardRequest) -> Response:
        return json_response(await white_box.compute_reward(self._gateway, body, self.caller(request)))

    async def feedback(self, request: Request, body: bodies.FeedbackRequest) -> Response:
        uid, key = name_in_path(request, "trajectory_uid"), idempotency_key(request)
        return json_response(await annotations.add_feedback(self._gateway, uid, body, self.caller(request), key))

    async def curate(self, request: Request, body: bodies.CurationRequest) -> Response:
        uid = name_in_path(request, "trajectory_uid")
        return json_response(await annotations.curate(self._gateway, uid, body, self.caller(request)))

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        admission = self._gateway.admission
        problem = admission.closed or ("paused" if admission.paused else "")
        return json_response({"status": problem or "ready"}, 503 if problem else 200)

    async def metrics(self, request: Request) -> Response:
        self.caller(request)
        page = await asyncio.to_thread(self._gateway.metrics.page)
        return Response(page, media_type="text/plain; version=0.0.4")

    async def pause(self, request: Request) -> Response:
        self.caller(request).require_admin()
        self._gateway.admission.pause("requested")
        return json_response({"status": "paused", "under_way": self._gateway.admission.running})

    async def resume(self, request: Request) -> Response:
        self.caller(request).require_admin()
        self._gateway.admission.resume("requested")
        return json_response({"status": "paused" if self._gateway.admission.paused else "ok"})
