"""Toolboxes and failing tools, for tests of policies."""

import asyncio

import httpx

from midstream.tools import Toolbox, ToolUseConfig, tool


def toolbox(*tools, **settings):
    options = {key: settings.pop(key) for key in ("max_calls", "approve") if key in settings}
    return Toolbox(tools, use=ToolUseConfig.model_validate(settings), **options)


def run(box, *calls):
    async def all_of_them():
        session = box.session()
        return [await session.call(name, arguments) for name, arguments in calls]

    return asyncio.run(all_of_them())


def failing(error, times=100, **policy):
    """A tool that raises `error` so many times, then answers."""
    calls = []

    @tool(name="flaky", backoff_s=0, **policy)
    def flaky(query: str) -> str:
        """Look something up."""
        calls.append(query)
        if len(calls) <= times:
            raise error
        return f"found {query}"

    return flaky, calls


def status(code):
    request = httpx.Request("GET", "http://127.0.0.1/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))
