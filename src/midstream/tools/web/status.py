"""Maps the HTTP status of a search service to errors of a tool."""

from __future__ import annotations

import httpx

from midstream.core.errors import ToolUnavailable
from midstream.tools.errors import ToolError

_WRONG_QUERY = (400, 413, 414, 422)
_REFUSED = (401, 402, 403, 432, 433)
"""432 and 433 are Tavily's: the limit of the plan or the key is reached."""


def check_status(response: httpx.Response, service: str) -> None:
    """Raise `ToolError` if the query is at fault, and `ToolUnavailable` for any other status than 200, which says
    nothing about the results. DuckDuckGo answers 202 to clients that it considers robots."""
    status = response.status_code
    if status in _WRONG_QUERY:
        raise ToolError(f"{service} does not take this query: status {status}")
    if status in _REFUSED:
        raise ToolUnavailable(f"{service} refused the key or the client: status {status}")
    if status != 200:
        raise ToolUnavailable(f"{service} gave no results: status {status}")
