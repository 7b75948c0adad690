"""A harness of verifiers that runs in this process: a chat loop with the task's tools.

verifiers' own harnesses start a program per rollout, with packages that it downloads; its default one gives the model a
shell. This one makes the same calls to the same endpoint.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire

from midstream.core.errors import ToolUnavailable
from midstream.tools import Toolbox, ToolOutage
from midstream.tools.mcp.client import McpToolset
from midstream.tools.mcp.config import McpServerConfig
from midstream.tools.toolbox import ToolsetFactory

HARNESS = "midstream_harness"
"""Id by which verifiers finds this harness."""


class MidstreamHarness(vf.Harness[vf.HarnessConfig]):
    """Chats until a reply calls no tool. Results of tools are text."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> Any:
        system, prompt = self.resolve_prompt(data)
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or ()]
        servers = {
            name: McpServerConfig(url=url, required=True, timeout_s=self.config.tool_timeout)
            for name, url in mcp_urls.items()
        }
        box = Toolbox(toolsets=[ToolsetFactory(lambda: McpToolset(servers))] if servers else [])
        async with AsyncExitStack() as resources:
            tools = box.session()
            try:
                await tools.open(resources)
            except ToolUnavailable as error:
                raise vf.ToolsetError(str(error)) from None
            headers = {"Authorization": f"Bearer {secret}"}
            client = await resources.enter_async_context(
                httpx.AsyncClient(base_url=endpoint, headers=headers, timeout=None, trust_env=False)
            )
            declared = {"tools": list(tools.schemas())} if tools.tools else {}
            while True:
                body = {"model": ctx.model, "messages": messages, **declared}
                response = await client.post("/chat/completions", json=body)
                if response.is_error:  # a limit or a stop condition of the environment, or a failed call
                    return vf.ProgramResult(exit_code=1, stdout="", stderr=response.text)
                reply = response.json()["choices"][0]["message"]
                messages.append(reply)
                calls = reply.get("tool_calls") or ()
                if not calls:
                    return vf.ProgramResult(exit_code=0, stdout=reply.get("content") or "", stderr="")
                for call in calls:
                    result = await _run(tools, call["function"])
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


async def _run(tools: Any, function: dict[str, Any]) -> str:
    """The result of a call, or its error, as text."""
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return "Error: the arguments are not JSON"
    try:
        return (await tools.call(function["name"], arguments)).result
    except ToolOutage as outage:
        return outage.call.result


__all__ = ["MidstreamHarness"]
# verifiers imports a harness by its id, which cannot have dots.
sys.modules[HARNESS] = sys.modules[__name__]
