"""`@modelcontextprotocol/server-everything`: its tools in a session of ours, and an agent trained with them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from midstream import api
from midstream.core.toolsets import ToolResult
from midstream.core.types import ToolCall
from midstream.record.store import Store
from midstream.tools import Toolbox
from midstream.tools.mcp.client import McpToolset
from midstream.tools.mcp.config import McpServerConfig
from midstream.tools.toolbox import ToolsetFactory

CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("echo", {"message": "hi"}),
    ("get-sum", {"a": 19, "b": 23}),
    ("get-sum", {"a": "many"}),
    ("get-tiny-image", {}),
    ("get-structured-content", {"location": "Chicago"}),
    ("get-resource-reference", {"resourceType": "Text", "resourceId": 1}),
    ("get-resource-reference", {"resourceType": "Blob", "resourceId": 2}),
    ("get-resource-links", {"count": 2}),
    ("trigger-long-running-operation", {"duration": 0.2, "steps": 2}),
    ("trigger-elicitation-request", {}),
    ("get-env", {}),
)


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest, node: Any, address: str) -> Iterator[McpServerConfig]:
    if request.param == "stdio":
        yield McpServerConfig(command=node("server-everything", "stdio"), elicitation="defaults")
        return
    port = address.rpartition(":")[2]
    command = node("server-everything", "streamableHttp")
    with subprocess.Popen(command, env=os.environ | {"PORT": port}, stderr=subprocess.DEVNULL) as process:
        url = f"http://{address}/mcp"
        while process.poll() is None:
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield McpServerConfig(url=url, elicitation="defaults")
        process.terminate()


def test_its_tools(server: McpServerConfig) -> None:
    listed, done = asyncio.run(_called(server))
    assert {name for name, _ in CALLS} <= set(listed)
    echo, total, wrong, image, weather, text, blob, links, long, asked, environment = done
    assert echo[0].result == "Echo: hi"
    assert total[0].result == "The sum of 19 and 23 is 42."
    assert (wrong[0].error_kind, "argument 'a'" in wrong[0].result) == ("invalid_arguments", True)
    picture = next(part for part in image[1].parts if part.kind == "image")
    assert picture.content is not None and picture.content.startswith(b"\x89PNG")
    assert weather[1].parts[0].data["conditions"] and weather[1].parts[0].kind == "data"
    assert any(part.source.startswith("demo://resource/dynamic/text/1") for part in text[1].parts)
    assert any(part.kind == "file" and part.content for part in blob[1].parts)
    assert sum("demo://resource" in part.source for part in links[1].parts) == 2
    assert "completed" in long[0].result
    assert asked[0].ok, "a form whose required fields have no defaults is declined, which is an answer"
    assert "VIRTUAL_ENV" not in environment[0].result or server.url is not None


async def _called(server: McpServerConfig) -> tuple[list[str], list[tuple[ToolCall, ToolResult]]]:
    box = Toolbox(toolsets=[ToolsetFactory(lambda: McpToolset({"everything": server}))], max_result_chars=20_000)
    async with AsyncExitStack() as resources:
        session = box.session()
        await session.open(resources)
        return [tool.name for tool in session.tools], [await session.run(name, given) for name, given in CALLS]


def test_an_agent_is_trained_with_its_tools(node: Any, tmp_path: Path) -> None:
    settings = {
        "policy": {"model": "tiny", "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {
            "name": "react",
            "settings": {
                "constrained": True,
                "actions": ["call_api", "answer"],
                "caps": {"answer": 1},
                "max_actions": 3,
            },
            "mcp_servers": {
                "everything": {
                    "command": list(node("server-everything", "stdio")),
                    "tools": ["echo", "get-sum"],
                    "shared": True,
                    "required": True,
                }
            },
        },
        "reward": {"components": {"length": -0.01, "wasted_calls": -0.1}},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 96}},
        "trainer": {"max_steps": 2, "val_tasks": 1, "test_tasks": 1, "threads": 1, "run_dir": str(tmp_path / "run")},
    }
    result = api.train(settings, callbacks=())
    assert result.status == "finished"
    with Store(tmp_path / "run" / "store.sqlite", read_only=True) as store:
        trajectories = list(store.trajectories.iterate(channel="train"))
    calls = [call for one in trajectories for call in one.tool_calls if call.ok]
    assert calls and all(call.result.startswith(("Echo: ", "The sum of ")) for call in calls)
