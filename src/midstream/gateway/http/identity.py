"""Identifies the caller of a request, and reads the gateway's own headers."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace

from starlette.requests import Request

from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.route import NAME
from midstream.gateway.limits.callers import Caller
from midstream.gateway.service import Gateway
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.call_request import CallRequest

TRAJECTORY_HEADER = "X-Midstream-Trajectory"
ROLE_HEADER = "X-Midstream-Role"
RETRY_HEADER = "X-Stainless-Retry-Count"
"""Number of earlier attempts at the same call, from OpenAI's and Anthropic's SDKs."""
_CALLER = "midstream.caller"
"""Key of the identified caller in a request's scope."""


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """A request in a trajectory, and its caller."""

    http: Request
    active: ActiveTrajectory
    caller: Caller

    def with_headers(self, request: CallRequest) -> CallRequest:
        """Return `request` with idempotency key, role and retry count from the headers."""
        retry = self.http.headers.get(RETRY_HEADER, "")
        return replace(
            request,
            key=idempotency_key(self.http),
            role=_name_in_header(self.http, ROLE_HEADER),
            retry=int(retry) if retry.isascii() and retry.isdigit() else None,
        )


async def agent_request(
    request: Request, gateway: Gateway, uid: str | None = None, prompt_uid: str | None = None
) -> AgentRequest:
    """Return `request` with its trajectory: the one in its path (`uid`), else that of its token or its header. Raises
    `ApiError` 400, 401, 403, 404 or 409."""
    caller = caller_of(request, gateway)
    uid = uid or trajectory_of(request, caller)
    caller.require_access(uid)
    return AgentRequest(request, await gateway.trajectories.get(uid, prompt_uid), caller)


def caller_of(request: Request, gateway: Gateway) -> Caller:
    """Return the caller, identified once per request. Raises `ApiError` 401."""
    caller = request.scope.get(_CALLER)
    if caller is None:
        caller = request.scope[_CALLER] = gateway.callers.identify_any(_credentials(request))
    return caller


def trajectory_of(request: Request, caller: Caller) -> str:
    """Return the trajectory of a request without one in its path. Raises `ApiError` 400 if it names none."""
    uid = caller.trajectory_uid or _name_in_header(request, TRAJECTORY_HEADER)
    if uid is None:
        raise ApiError(
            400,
            "no trajectory: POST /init_trajectory returns a base_url and a token; use either, or name one in the "
            f"header {TRAJECTORY_HEADER}",
            code="no_trajectory",
        )
    return uid


def browser_caller(request: Request, gateway: Gateway) -> Caller:
    """Return the caller of a page for browsers, which send a key as the password of basic authentication."""
    password = _password(request)
    return gateway.callers.identify_any([password] if password else _credentials(request))


def idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
        raise ApiError(400, "the header Idempotency-Key takes 1 to 255 printable ASCII characters")
    return key


def _credentials(request: Request) -> list[str]:
    """Return the keys and tokens of a request. Clients may send a key of another service beside the gateway's."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    given = [value.strip() if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
    return [secret for secret in given if secret]


def _password(request: Request) -> str | None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        decoded = base64.b64decode(value, validate=True).decode() if scheme.lower() == "basic" else ""
    except ValueError:
        return None
    return decoded.partition(":")[2] or None


def _name_in_header(request: Request, header: str) -> str | None:
    name = request.headers.get(header)
    if name is not None and not re.fullmatch(NAME, name):
        raise ApiError(400, f"the header {header} takes 1 to 200 letters, digits and ._:@-")
    return name
