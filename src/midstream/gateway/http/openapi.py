"""The OpenAPI description of the gateway: made from its routes, and from the table of endpoints below."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from midstream import __version__
from midstream.gateway.http.model_routes import TRAJECTORY_PATH
from midstream.gateway.http.route import NAME, ApiRoute

_REFERENCE = "#/components/schemas/{model}"
_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": f"^{NAME}$"}
_QUERY = {"after": {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}}
"""Schemas of query arguments that are not names."""
_TAGS = {
    "Models": "Model calls of agents, with any client of these APIs. At the root, the token or the header "
    "`X-Midstream-Trajectory` names the trajectory of a call; under a trajectory's own path, the path does.",
    "Trajectories": "A trajectory is one attempt at one task: opened, described, and ended once.",
    "White box": "For agents that handle tokens and rewards themselves.",
    "People": "People's feedback on recorded trajectories, what training does with them, and answers to plans.",
    "Operation": "For the operator of the gateway.",
}
_ACCESS = {
    "anyone": "Needs no key.",
    "agent": "For the agent's token, the owner's, or a key.",
    "owner": "For the owner's token or a key; not for the agent's.",
    "admin": "For a key with `admin`.",
    "reader": "For any token or key.",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What the description says about an endpoint; `access` is a key of `_ACCESS`."""

    tag: str
    summary: str
    access: str = "agent"
    media_type: str = "application/json"
    """Of the response."""


ENDPOINTS = {
    "/v1/chat/completions": Endpoint("Models", "Create a chat completion (OpenAI)"),
    "/v1/completions": Endpoint("Models", "Create a completion of text or token ids (OpenAI)"),
    "/inference/v1/generate": Endpoint("Models", "Continue token ids (vLLM)"),
    "/v1/responses": Endpoint("Models", "Create a response (OpenAI)"),
    "/v1/messages": Endpoint("Models", "Create a message (Anthropic)"),
    "/v1/messages/count_tokens": Endpoint("Models", "Count the tokens of a prompt (Anthropic)"),
    "/v1/models": Endpoint("Models", "List the models", "reader"),
    "/v1/models/{name}": Endpoint("Models", "Describe a model", "reader"),
    "/init_trajectory": Endpoint(
        "Trajectories", "Open a trajectory: returns a base_url, a token for its agent and one for its owner", "admin"
    ),
    "/v1/register_trajectory": Endpoint("Trajectories", "Add to a trajectory's task and metadata, or open it", "owner"),
    "/v1/complete_trajectory": Endpoint("Trajectories", "End a trajectory with its outcome"),
    "/complete_trajectory/{trajectory_uid}": Endpoint("Trajectories", "End a trajectory"),
    "/complete_trajectory": Endpoint("Trajectories", "End the trajectory of the token"),
    "/trajectories/{trajectory_uid}": Endpoint("Trajectories", "Describe a trajectory"),
    "/trajectories/{trajectory_uid}/heartbeat": Endpoint("Trajectories", "Keep the trajectory of a silent agent open"),
    "/generate": Endpoint("White box", "Sample a response to token ids or messages, with ids and log-probabilities"),
    "/submit_steps": Endpoint(
        "White box", "Submit steps: rewards for those sampled here, and whole steps sampled elsewhere", "owner"
    ),
    "/compute_reward": Endpoint("White box", "Compute what a trajectory would earn", "owner"),
    "/trajectories/{trajectory_uid}/feedback": Endpoint(
        "People", "Record a person's feedback on a trajectory or a step", "owner"
    ),
    "/trajectories/{trajectory_uid}/curation": Endpoint(
        "People", "Decide what training does with a trajectory or a step", "admin"
    ),
    "/plans/questions": Endpoint("People", "List the open questions of plans", "admin"),
    "/plans/{run}/questions/{question}": Endpoint("People", "Answer a question of a plan", "admin"),
    "/plans/{run}/events": Endpoint(
        "Operation", "Follow the events of a plan's run (server-sent events)", "admin", "text/event-stream"
    ),
    "/health": Endpoint("Operation", "Whether the process answers", "anyone"),
    "/ready": Endpoint("Operation", "Whether calls are answered at once (503 if not)", "anyone"),
    "/metrics": Endpoint("Operation", "Counters in Prometheus' format", "reader"),
    "/pause": Endpoint("Operation", "Make new calls wait", "admin"),
    "/resume": Endpoint("Operation", "Admit the waiting calls", "admin"),
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {**_TEXT, "description": "What was wrong, and what to do"},
                "type": {**_TEXT, "description": "OpenAI's name for this kind of error"},
                "param": {"type": ["string", "null"], "description": "The argument at fault"},
                "code": {**_TEXT, "description": "A stable code for programs"},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {**_TEXT, "description": "Anthropic's name for this kind of error"},
                "message": {**_TEXT, "description": "What was wrong, and what to do"},
            },
        },
    },
}
_SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of the gateway, or a trajectory's token: its agent's or its owner's",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, for Anthropic's clients",
    },
}
_CALL_HEADERS = {
    "Idempotency-Key": "A call repeated with the same key gets the same answer and is sampled once",
    "X-Midstream-Role": "The module role of the call; `policy` if absent",
    "X-Midstream-Trajectory": "The trajectory of the call, if no token names it",
}


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI description of `routes`."""
    described = [route for route in routes if isinstance(route, ApiRoute)]
    order = list(ENDPOINTS)
    described.sort(key=lambda route: (order.index(_base(route)), route.path))
    bodies = dict.fromkeys(route.body for route in described if route.body is not None)
    references, page = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in described:
        body = None if route.body is None else references[route.body, "validation"]
        paths.setdefault(route.path_format, {})[route.method.lower()] = _operation(route, body)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Midstream gateway",
            "version": __version__,
            "description": "Records any agent that speaks OpenAI's or Anthropic's API, token for token.",
        },
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**page["$defs"], "OpenAIError": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR},
            "securitySchemes": _SECURITY,
        },
    }


def _base(route: ApiRoute) -> str:
    return route.path_format.removeprefix(TRAJECTORY_PATH)


def _operation(route: ApiRoute, body: Mapping[str, Any] | None) -> dict[str, Any]:
    base, path = _base(route), route.path_format
    endpoint = ENDPOINTS[base]
    errors = "AnthropicError" if base.startswith("/v1/messages") else "OpenAIError"
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=errors)}}}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{path}").rstrip("_"),
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "description": _ACCESS[endpoint.access],
        "security": [] if endpoint.access == "anyone" else [{name: []} for name in _SECURITY],
        "parameters": _parameters(route, is_call=endpoint.tag == "Models" and body is not None),
        "responses": {
            "200": {"description": "Success", "content": {endpoint.media_type: {"schema": {}}}},
            "4XX": {"description": "The request is at fault", "content": error},
            "5XX": {"description": "It cannot be answered now; Retry-After says when to try again", "content": error},
        },
    }
    if body is not None:
        operation["requestBody"] = {
            "required": not route.optional,
            "content": {"application/json": {"schema": body}},
        }
    return operation


def _parameters(route: ApiRoute, *, is_call: bool) -> Sequence[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT if name == "name" else _NAME}
        for name in route.param_convertors
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": _QUERY.get(name, _NAME)} for name in route.query
    ]
    if is_call:
        in_path = route.path_format.startswith(TRAJECTORY_PATH)
        parameters += [
            {"name": name, "in": "header", "required": False, "schema": _TEXT, "description": text}
            for name, text in _CALL_HEADERS.items()
            if not (in_path and name == "X-Midstream-Trajectory")
        ]
    return parameters
