"""`web_fetch`: returns the readable text of a web page, extracted by trafilatura.

The model chooses the address, so only public addresses are reachable (`addresses`), each redirect passes the same
check, and size and time are limited. No cookies, no scripts, no proxy settings of the environment.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpcore
import httpx
from pydantic import Field

from midstream.core.config import Config
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools.declare import tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset
from midstream.tools.web.addresses import PublicNetwork

USER_AGENT = "midstream (+https://pypi.org/project/midstream)"
MAX_URL_CHARS = 2000
_REDIRECTS = (301, 302, 303, 307, 308)
_HTML = ("text/html", "application/xhtml+xml")
_TEXT = ("text/", "application/json", "application/xml", "application/ld+json")


class WebFetchSettings(Config):
    """`flow.tool_settings.web_fetch`."""

    max_kb: int = Field(default=2048, ge=1)
    """Size limit of a page after decompression. Larger pages are refused."""
    max_redirects: int = Field(default=5, ge=0)
    """Maximum number of redirects."""
    timeout_s: float = Field(default=20.0, gt=0)
    """Time limit of a page including redirects, in seconds."""
    allow: tuple[str, ...] = ()
    """Reachable addresses that are not public, as `host:port`."""


@dataclass(frozen=True)
class Page:
    """A fetched page. `url` is the address after redirects."""

    url: str
    media_type: str
    body: bytes
    charset: str | None


def fetch_toolset(settings: WebFetchSettings) -> FunctionToolset:
    """Return the tool `web_fetch`."""

    @tool(
        timeout_s=settings.timeout_s + 5,
        idempotent=True,
        returns="text",
        limits=["reads text, not files or applications", "needs the exact address"],
        best_practices=["search first, then fetch an address found"],
        examples=[{"url": "https://en.wikipedia.org/wiki/Tide"}],
    )
    async def web_fetch(url: str) -> ToolResult:
        """Read a web page as plain text."""
        try:
            async with asyncio.timeout(settings.timeout_s):
                page = await fetch(url, settings)
        except TimeoutError:
            raise ToolError(f"the page took longer than {settings.timeout_s:g} s") from None
        text = await asyncio.to_thread(readable, page)
        return ToolResult((ToolContent(kind="text", text=text, media_type="text/plain", source=page.url),))

    return FunctionToolset([web_fetch])


async def fetch(url: str, settings: WebFetchSettings) -> Page:
    """Fetch a page. Raises `ToolError` for a refused address or page, and for a server that does not answer."""
    network = PublicNetwork(settings.allow)
    async with httpcore.AsyncConnectionPool(network_backend=network, http1=True, http2=False) as pool:
        for _ in range(settings.max_redirects + 1):
            address = _checked(url)
            try:
                async with pool.stream(
                    "GET",
                    str(address),
                    headers={
                        "Host": address.netloc.decode(),
                        "User-Agent": USER_AGENT,
                        "Accept": "text/html, text/plain, application/json;q=0.9, */*;q=0.1",
                        "Accept-Encoding": "gzip",
                    },
                ) as response:
                    headers = {
                        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
                    }
                    if response.status in _REDIRECTS and headers.get("location"):
                        url = urljoin(str(address), headers["location"])
                        continue
                    if response.status >= 400:
                        raise ToolError(f"{address.host} answered with status {response.status}")
                    return await _read(response, headers, str(address), settings.max_kb << 10)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
                # The model chose the address, so an unreachable server is a result, not an outage.
                raise ToolError(f"{address.host} cannot be read: {type(error).__name__}") from None
    raise ToolError(f"the page redirects more than {settings.max_redirects} times")


def _checked(url: str) -> httpx.URL:
    if len(url) > MAX_URL_CHARS:
        raise ToolError(f"the address is longer than {MAX_URL_CHARS} characters")
    try:
        address = httpx.URL(url.strip())
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise ToolError("that is not an address; give one that starts with https://") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ToolError("only addresses that start with http:// or https:// can be fetched")
    if address.userinfo:
        raise ToolError("an address with a user name is not fetched")
    return address


async def _read(response: Any, headers: Mapping[str, str], url: str, limit: int) -> Page:
    media_type, _, parameters = headers.get("content-type", "text/plain").partition(";")
    media_type = media_type.strip().lower()
    if media_type not in _HTML and not media_type.startswith(_TEXT):
        raise ToolError(f"the page is {media_type[:60]}, not text")
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", ""):
        raise ToolError(f"the page is packed as {encoding[:20]}")
    unpack = zlib.decompressobj(31) if encoding == "gzip" else None
    length = headers.get("content-length", "")
    too_large = f"the page is larger than {limit >> 10} kB"
    if length.isdigit() and int(length) > limit:
        raise ToolError(too_large)
    body = bytearray()
    async for chunk in response.aiter_stream():
        try:
            # At most one byte above the limit: a small body may decompress to gigabytes.
            body += unpack.decompress(chunk, limit + 1 - len(body)) if unpack else chunk
        except zlib.error:
            raise ToolError("the page is packed wrongly") from None
        if len(body) > limit:
            raise ToolError(too_large)
    charset = parameters.lower().partition("charset=")[2].strip(" \"';") or None
    return Page(url, media_type, bytes(body), charset)


def readable(page: Page) -> str:
    """Return the text of `page`, for HTML its main content. Raises `ToolError` if there is none."""
    try:
        text = page.body.decode(page.charset or "utf-8", "replace")
    except LookupError:
        text = page.body.decode("utf-8", "replace")
    if page.media_type not in _HTML:
        return text
    import trafilatura

    found = trafilatura.extract(text, url=page.url, include_comments=False)
    if not found:
        raise ToolError("the page has no readable text")
    return found


web_fetch = ToolKind(WebFetchSettings, fetch_toolset)
