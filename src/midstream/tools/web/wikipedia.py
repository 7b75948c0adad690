"""`wikipedia`: returns introductions of articles that match a query, from the API of Wikipedia or another MediaWiki."""

from __future__ import annotations

from typing import Any

import httpx
from pydantic import Field

from midstream.core.config import Config
from midstream.core.errors import ToolUnavailable
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools.declare import tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset
from midstream.tools.web.fetch import USER_AGENT
from midstream.tools.web.status import check_status

_WRONG_QUERY = ("missingparam", "badvalue", "cirrussearch-query", "cirrussearch-regex", "cirrussearch-parse")
"""Prefixes of MediaWiki's error codes about a query. The other parameters never change, so any other error is a failure
of the service."""


class WikipediaSettings(Config):
    """`flow.tool_settings.wikipedia`."""

    url: str = "https://en.wikipedia.org/w/api.php"
    """The API's address."""
    k: int = Field(default=1, ge=1, le=10)
    """Number of articles."""
    max_chars: int = Field(default=1500, ge=100)
    """Longest introduction."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Time limit of a search, in seconds."""


def wikipedia_toolset(settings: WikipediaSettings) -> FunctionToolset:
    """Return the tool `wikipedia`."""

    @tool(
        name="wikipedia",
        timeout_s=settings.timeout_s,
        retries=2,
        idempotent=True,
        returns="introductions of articles",
        limits=["knows what an encyclopedia holds, not today's news"],
        best_practices=["ask for a name or a term, not a whole question"],
        examples=[{"query": "Tide"}],
    )
    async def look_up(query: str) -> ToolResult:
        """Look something up in Wikipedia."""
        pages = await _pages(query, settings)
        if not pages:
            raise ToolError("no result")
        return ToolResult(
            tuple(
                ToolContent(
                    kind="text",
                    text=f"{page['title']}: {page.get('extract', '')[: settings.max_chars]}",
                    source=page.get("fullurl", ""),
                )
                for page in pages
            )
        )

    return FunctionToolset([look_up])


async def _pages(query: str, settings: WikipediaSettings) -> list[dict[str, Any]]:
    params: dict[str, str | int] = {
        "action": "query",
        "format": "json",
        "formatversion": 2,
        "generator": "search",
        "gsrsearch": query,
        "gsrlimit": settings.k,
        "prop": "extracts|info",
        "exintro": 1,
        "explaintext": 1,
        "exlimit": "max",
        "inprop": "url",
    }
    async with httpx.AsyncClient(timeout=settings.timeout_s, headers={"User-Agent": USER_AGENT}) as client:
        response = await client.get(settings.url, params=params)
    check_status(response, response.url.host)
    try:
        answer = response.json()
        _check_error(answer.get("error"), response.url.host)
        pages = answer.get("query", {}).get("pages", [])
        return sorted(pages, key=lambda page: page["index"])[: settings.k]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ToolUnavailable(f"{response.url.host} answered with something that is not a list of pages") from None


def _check_error(error: Any, host: str) -> None:
    """Raise the error in MediaWiki's answer, which has status 200 even for errors."""
    if error is None:
        return
    code, info = str(error.get("code")), str(error.get("info"))[:200]
    if code.startswith(_WRONG_QUERY):
        raise ToolError(f"the query is refused: {info}")
    raise ToolUnavailable(f"{host} failed: {code}: {info}")


wikipedia = ToolKind(WikipediaSettings, wikipedia_toolset)
