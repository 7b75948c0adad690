"""`web_search`: returns results of a search engine: SearXNG, Brave, Tavily or DuckDuckGo, selected by the config."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx
from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools.declare import tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset
from midstream.tools.web.fetch import USER_AGENT
from midstream.tools.web.status import check_status

BackendName = Literal["searxng", "brave", "tavily", "duckduckgo"]
_URLS: dict[str, str | None] = {
    "searxng": None,
    "brave": "https://api.search.brave.com",
    "tavily": "https://api.tavily.com",
    "duckduckgo": "https://html.duckduckgo.com",
}
_WITH_KEY = ("brave", "tavily")


class WebSearchSettings(Config):
    """`flow.tool_settings.web_search`."""

    backend: BackendName
    """`searxng` needs `url`, an instance that allows the JSON format; `brave` and `tavily` need `api_key_env`."""
    url: str | None = None
    """Address of the service, if it is not the public one."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    k: int = Field(default=5, ge=1, le=20)
    """Number of results."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Time limit of a search, in seconds."""
    retries: int = Field(default=2, ge=0)
    """Further attempts if the service is busy or down."""

    @model_validator(mode="after")
    def _complete(self) -> WebSearchSettings:
        if self.backend == "searxng" and self.url is None:
            raise ValueError("searxng needs url, the address of an instance")
        if self.backend in _WITH_KEY and self.api_key_env is None:
            raise ValueError(f"{self.backend} needs api_key_env, the environment variable that holds the key")
        return self


@dataclass(frozen=True)
class Hit:
    """One search result."""

    title: str
    url: str
    snippet: str


def search_toolset(settings: WebSearchSettings) -> FunctionToolset:
    """Return the tool `web_search`. Raises `ConfigError` if the environment variable of the key is not set."""
    key = os.environ.get(settings.api_key_env or "")
    if settings.api_key_env is not None and not key:
        raise ConfigError(
            f"the environment variable {settings.api_key_env} holds no key for {settings.backend}",
            f"export {settings.api_key_env}=...",
        )
    base = (settings.url or _URLS[settings.backend] or "").rstrip("/")

    @tool(
        timeout_s=settings.timeout_s,
        retries=settings.retries,
        idempotent=True,
        returns="titles, addresses and snippets",
        limits=["snippets may be old or cut"],
        best_practices=["use few, specific words", "fetch the page when the snippet is not enough"],
        examples=[{"query": "2020 Olympics medal table"}],
    )
    async def web_search(query: str) -> ToolResult:
        """Search the web."""
        request, read = _BACKENDS[settings.backend](base, query, settings.k, key or "")
        hits = read(await _answer(request, settings))[: settings.k]
        if not hits:
            raise ToolError("no result")
        return ToolResult(
            tuple(
                ToolContent(kind="text", text=f"{number}. {hit.title}\n{hit.url}\n{hit.snippet}", source=hit.url)
                for number, hit in enumerate(hits, 1)
            )
        )

    return FunctionToolset([web_search])


async def _answer(request: httpx.Request, settings: WebSearchSettings) -> httpx.Response:
    async with httpx.AsyncClient(timeout=settings.timeout_s, headers={"User-Agent": USER_AGENT}) as client:
        response = await client.send(request)
    check_status(response, settings.backend)
    return response


Read = Callable[[httpx.Response], Sequence[Hit]]


def _searxng(base: str, query: str, k: int, key: str) -> tuple[httpx.Request, Read]:
    params = {"q": query, "format": "json"}
    return httpx.Request("GET", f"{base}/search", params=params), lambda answer: _hits(answer, ["results"], "content")


def _brave(base: str, query: str, k: int, key: str) -> tuple[httpx.Request, Read]:
    request = httpx.Request(
        "GET",
        f"{base}/res/v1/web/search",
        params={"q": query, "count": k},
        headers={"X-Subscription-Token": key, "Accept": "application/json"},
    )
    return request, lambda answer: _hits(answer, ["web", "results"], "description")


def _tavily(base: str, query: str, k: int, key: str) -> tuple[httpx.Request, Read]:
    request = httpx.Request(
        "POST",
        f"{base}/search",
        json={"query": query, "max_results": k},
        headers={"Authorization": f"Bearer {key}"},
    )
    return request, lambda answer: _hits(answer, ["results"], "content")


def _duckduckgo(base: str, query: str, k: int, key: str) -> tuple[httpx.Request, Read]:
    return httpx.Request("POST", f"{base}/html/", data={"q": query}), _read_duckduckgo


def _hits(answer: httpx.Response, path: Sequence[str], snippet: str) -> list[Hit]:
    """Return the results at `path` of a JSON answer; `snippet` is the key of their text."""
    try:
        found: Any = answer.json()
        for name in path:
            found = found.get(name) or {}
        return [Hit(_text(hit.get("title")), str(hit["url"]), _text(hit.get(snippet))) for hit in found or []]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ToolUnavailable(f"{answer.url.host} answered with something that is not a list of results") from None


def _read_duckduckgo(answer: httpx.Response) -> list[Hit]:
    from lxml import html

    page = html.fromstring(answer.text or "<html/>")
    hits: list[Hit] = []
    for result in page.xpath('//div[contains(concat(" ", @class, " "), " result ")]'):
        links = result.xpath('.//a[contains(@class, "result__a")]')
        if not links or "result--ad" in result.get("class", ""):
            continue
        url = links[0].get("href", "")
        url = parse_qs(urlsplit(url).query).get("uddg", [url])[0]  # results link to a page that redirects
        snippets = result.xpath('.//*[contains(@class, "result__snippet")]')
        hits.append(Hit(_text(links[0].text_content()), url, _text(snippets[0].text_content() if snippets else "")))
    return hits


def _text(value: Any) -> str:
    return " ".join(str(value or "").split())


_BACKENDS: dict[str, Callable[[str, str, int, str], tuple[httpx.Request, Read]]] = {
    "searxng": _searxng,
    "brave": _brave,
    "tavily": _tavily,
    "duckduckgo": _duckduckgo,
}

web_search = ToolKind(WebSearchSettings, search_toolset)
