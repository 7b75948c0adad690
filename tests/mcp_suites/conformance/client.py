"""The client that the conformance suite starts: our `McpToolset`, which lists the server's tools and calls each.

    python client.py URL

The suite names the scenario in the environment, and gives credentials as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any
from urllib.parse import urlsplit

import httpx

from midstream.tools.mcp.client import McpToolset
from midstream.tools.mcp.config import McpOAuthConfig, McpServerConfig

ARGUMENTS = {"add_numbers": {"a": 2, "b": 3}}


async def main(url: str) -> None:
    toolset = McpToolset({"suite": McpServerConfig(url=url, required=True, elicitation="defaults", oauth=oauth(url))})
    await toolset.open()
    try:
        for tool in await toolset.list():
            print((await toolset.call(tool.name, ARGUMENTS.get(tool.name, {}))).text)
    finally:
        await toolset.close()


def oauth(url: str) -> McpOAuthConfig | None:
    """The suite's credentials. It does not say whose they are, so the server is asked, which a user never should."""
    given: dict[str, Any] = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    if "client_secret" not in given:
        return None
    server = urlsplit(url)
    resource = httpx.get(f"{server.scheme}://{server.netloc}/.well-known/oauth-protected-resource{server.path}").json()
    os.environ["SUITE_SECRET"] = given["client_secret"]
    issuer = resource["authorization_servers"][0]
    return McpOAuthConfig(issuer=issuer, client_id=given["client_id"], secret_env="SUITE_SECRET")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
