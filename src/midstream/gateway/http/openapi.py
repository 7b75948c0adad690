"""The OpenAPI page: what FastAPI reads from the routes, and beside it what each is for, who may ask, and how errors
look."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

SCOPE = "/{trajectory_uid}/{prompt_uid}"
TAGS = {
    "Models": "What agents call, with the client they have. At the root the token, or the header "
    "`X-Midstream-Trajectory`, says which trajectory a call belongs to; under a trajectory's own path, the path does.",
    "Trajectories": "One attempt at one task: opened, described, and ended once.",
    "White box": "For agents that handle tokens and rewards themselves.",
    "People": "What people think of what was recorded, and what training is to do with it.",
    "Operation": "For whoever runs the gateway.",
}
ABOUT: dict[str, tuple[str, str]] = {
    "/v1/chat/completions": ("Models", "A chat completion, as OpenAI has it"),
    "/v1/completions": ("Models", "A completion of text or of token ids, as OpenAI has it"),
    "/v1/responses": ("Models", "A response, as OpenAI has it"),
    "/v1/messages": ("Models", "A message, as Anthropic has it"),
    "/v1/messages/count_tokens": ("Models", "How many tokens a prompt has, as Anthropic has it"),
    "/v1/models": ("Models", "The models that are served"),
    "/v1/models/{name}": ("Models", "One of the models that are served"),
    "/init_trajectory": ("Trajectories", "Begin a trajectory: a base_url and a token for its agent, one for its owner"),
    "/v1/register_trajectory": ("Trajectories", "Say more of a trajectory, or begin it"),
    "/v1/complete_trajectory": (
        "Trajectories",
        "End a trajectory, with what came of it",
    ),
    "/complete_trajectory/{trajectory_uid}": ("Trajectories", "End a trajectory"),
    "/complete_trajectory": ("Trajectories", "End the trajectory of the token"),
    "/trajectories/{trajectory_uid}": ("Trajectories", "How a trajectory stands"),
    "/trajectories/{trajectory_uid}/heartbeat": ("Trajectories", "Say that a silent agent is still at work"),
    "/generate": ("White box", "A response to token ids or messages, with its ids and log-probabilities"),
    "/submit_steps": ("White box", "Hand steps in: rewards for those sampled here, and whole ones sampled elsewhere"),
    "/compute_reward": ("White box", "What a trajectory would earn"),
    "/trajectories/{trajectory_uid}/feedback": ("People", "Say what a person thought of a trajectory or a step"),
    "/trajectories/{trajectory_uid}/curation": ("People", "Decide what training does with a trajectory or a step"),
    "/health": ("Operation", "Whether the process answers; needs no key"),
    "/ready": ("Operation", "Whether calls are answered at once (503 when not); needs no key"),
    "/metrics": ("Operation", "Counters in Prometheus' format"),
    "/pause": ("Operation", "Have new calls wait"),
    "/resume": ("Operation", "Let them through again"),
}
_TEXT = {"type": "string"}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {**_TEXT, "description": "What was wrong, and what to do"},
                "type": {**_TEXT, "description": "The kind of error, as OpenAI's clients know it"},
                "param": {"type": ["string", "null"], "description": "The argument it is about"},
                "code": {**_TEXT, "description": "A word that a program can compare"},
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
                "type": {**_TEXT, "description": "The kind of error, as Anthropic's clients know it"},
                "message": {**_TEXT, "description": "What was wrong, and what to do"},
            },
        },
    },
}
_KEYS = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of the gateway, or a trajectory's token: its agent's or its owner's",
    },
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same, for Anthropic's"},
}
_HEADERS = {
    "Idempotency-Key": "Asked again with the same key, the same call gets the same answer; it is sampled once",
    "X-Midstream-Role": "The module role that speaks; `policy` when not given",
    "X-Midstream-Trajectory": "The trajectory the call belongs to, where no token says it",
}


_WHO = {
    "/init_trajectory": "key",
    "/v1/register_trajectory": "owner",
    "/submit_steps": "owner",
    "/compute_reward": "owner",
    "/trajectories/{trajectory_uid}/feedback": "owner",
    "/trajectories/{trajectory_uid}/curation": "key",
    "/health": "anybody",
    "/ready": "anybody",
    "/metrics": "reader",
    "/v1/models": "reader",
    "/v1/models/{name}": "reader",
    "/pause": "key",
    "/resume": "key",
}
"""Who may call an endpoint, where that is not `agent`."""
_MEANS = {
    "anybody": "Needs nothing.",
    "agent": "For the agent's token, the owner's, or a key.",
    "owner": "For the owner's token or a key; not for the agent's.",
    "key": "For a key.",
    "reader": "For any token or key, also one that is no admin's.",
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of `app`, made once."""
    app.openapi_schema = app.openapi_schema or _page(app)
    return app.openapi_schema


def _page(app: FastAPI) -> dict[str, Any]:
    tags = [{"name": name, "description": about} for name, about in TAGS.items()]
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes, tags=tags)
    components = page.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are not sent
        schemas.pop(name, None)
    schemas |= {"OpenAIError": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR}
    components["securitySchemes"] = _KEYS
    for path, operations in page["paths"].items():
        for operation in operations.values():
            _describe(operation, path)
    return page


def _describe(operation: dict[str, Any], path: str) -> None:
    base = path.removeprefix(SCOPE)
    tag, summary = ABOUT[base]
    operation |= {"tags": [tag], "summary": summary, "description": _MEANS[_WHO.get(base, "agent")]}
    operation["security"] = [] if base in ("/health", "/ready") else [{name: []} for name in _KEYS]
    shape = "AnthropicError" if base.startswith("/v1/messages") else "OpenAIError"
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    responses = {status: told for status, told in operation["responses"].items() if status.startswith("2")}
    responses["4XX"] = {"description": "Something is wrong with the request", "content": error}
    responses["5XX"] = {"description": "It cannot be answered now; Retry-After says when it may be", "content": error}
    operation["responses"] = responses
    if tag == "Models" and "requestBody" in operation:
        headers = [name for name in _HEADERS if base == path or name != "X-Midstream-Trajectory"]
        operation.setdefault("parameters", []).extend(
            {"name": name, "in": "header", "required": False, "schema": _TEXT, "description": _HEADERS[name]}
            for name in headers
        )
