"""The streamable HTTP transport to an MCP server, with bounded answers and access tokens."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken

from midstream.core.errors import ConfigError
from midstream.tools.mcp.config import McpServerConfig

_SDK_BOUNDS_EVENTS = "max_sse_event_size" in inspect.signature(streamable_http_client).parameters
"""Since 2.3 of the SDK. verifiers needs 2.0."""


@asynccontextmanager
async def http_transport(name: str, config: McpServerConfig, limit: int) -> AsyncGenerator[tuple[Any, Any], None]:
    """Yield the streams of messages to `config.url`; answers above `limit` bytes are cut off.

    Raises `ConfigError` when a variable that should hold a secret does not."""
    assert config.url is not None
    headers = dict(config.headers)
    if config.token_env is not None:
        headers["Authorization"] = f"Bearer {_secret(name, config.token_env, 'token')}"
    auth = _client_credentials(name, config)
    timeout = httpx2.Timeout(config.timeout_s, read=max(config.timeout_s, 300.0))
    transport = _BoundedTransport(httpx2.AsyncHTTPTransport(), limit)
    bound: dict[str, Any] = {"max_sse_event_size": limit} if _SDK_BOUNDS_EVENTS else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, transport=transport, trust_env=False, auth=auth) as client,
        streamable_http_client(config.url, http_client=client, **bound) as streams,
    ):
        yield streams


def _client_credentials(name: str, config: McpServerConfig) -> httpx2.Auth | None:
    if config.oauth is None or config.url is None:
        return None
    return ClientCredentialsOAuthProvider(
        config.url,
        _TokenOfConnection(),
        client_id=config.oauth.client_id,
        client_secret=_secret(name, config.oauth.secret_env, "client secret"),
        token_endpoint_auth_method=config.oauth.method,
        scope=config.oauth.scope,
        issuer=config.oauth.issuer,
    )


def _secret(name: str, variable: str, what: str) -> str:
    secret = os.environ.get(variable)
    if not secret:
        raise ConfigError(
            f"the environment variable {variable} holds no {what} for the MCP server '{name}'",
            f"export {variable}=...",
        )
    return secret


class _TokenOfConnection:
    """Keeps the access token as long as its connection."""

    _token: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        pass


class _BoundedTransport(httpx2.AsyncBaseTransport):
    """Cuts off bodies above `limit` bytes, except streams of events where the SDK bounds single events."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, limit: int) -> None:
        self._inner, self._limit = inner, limit

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if not (is_stream and _SDK_BOUNDS_EVENTS):
            response.stream = _BoundedStream(response.stream, self._limit, request)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, limit: int, request: httpx2.Request) -> None:
        self._inner, self._limit, self._request = inner, limit, request

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > self._limit:
                raise httpx2.ReadError(f"the answer is larger than {self._limit >> 10} kB", request=self._request)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
