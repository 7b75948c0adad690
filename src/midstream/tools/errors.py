"""Errors that a tool raises. The class says who should react: the model, a retry, or the operator.

`ToolError`: the model reads the message. `TransientToolError`: the call may succeed if repeated; after the last
retry the model reads the message. `ToolUnavailable` (from `midstream.core.errors`): the tool's service is down; an
idempotent tool is retried, then the fallbacks are tried, then the trajectory fails as infrastructure and is not
trained on.
"""

from __future__ import annotations

import sys
from typing import Any

from midstream.core.errors import MidstreamError, ServiceError, ToolUnavailable
from midstream.core.types import ToolCall

RAISED = "raised"
TRANSIENT = "transient"
TIMEOUT = "timeout"
UNAVAILABLE = "unavailable"
OVER_BUDGET = "over_budget"
REFUSED = "refused"
INVALID = "invalid_arguments"
UNKNOWN_TOOL = "unknown_tool"


class ToolError(MidstreamError):
    """Raised by a tool to report an error to the model, which reads only the message."""


class TransientToolError(ToolError):
    """The call was not carried out because of a temporary condition, such as a rate limit or a lock. Repeating it is
    safe."""


class ToolOutage(ToolUnavailable):
    """A call failed because of infrastructure. `call` is the record of the call."""

    def __init__(self, call: ToolCall) -> None:
        super().__init__(f"the tool '{call.tool}' is unavailable: {call.result.removeprefix('Error: ')}")
        self.call = call


def kind_of_error(error: BaseException) -> str:
    """Return the `ToolCall.error_kind` of an exception that a tool raised.

    Besides the classes above, connection errors (`ConnectionError`, those of httpx) and HTTP statuses 429 and 5xx are
    `unavailable`: they say nothing about the call."""
    if isinstance(error, TransientToolError):
        return TRANSIENT
    if isinstance(error, ToolError):
        return RAISED
    if isinstance(error, ServiceError | ConnectionError):
        return UNAVAILABLE
    httpx: Any = sys.modules.get("httpx")
    if httpx is not None:
        if isinstance(error, httpx.HTTPStatusError):
            status: int = error.response.status_code  # pyright: ignore[reportAttributeAccessIssue]  imported lazily
            return UNAVAILABLE if status == 429 or status >= 500 else RAISED
        if isinstance(error, httpx.TransportError):
            return UNAVAILABLE
    return RAISED


def reason(error: BaseException) -> str:
    """Return why a tool failed, as text for the model."""
    if isinstance(error, ToolError | ServiceError):
        return str(error)
    try:
        message = str(error)
    except Exception as broken:
        # the model needs a message even if the exception's own text raises
        message = f"(its message raised {type(broken).__name__})"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
