"""MCP servers as toolsets, and our tools as an MCP server; servers that die, hang, flood and lie."""

import asyncio
import os
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="pip install 'midstream[mcp]'")

from mcp import Client
from mcp_types import ElicitRequestFormParams, ElicitRequestURLParams

from midstream.core.errors import ConfigError
from midstream.core.secrets import without_secrets
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools import Toolbox, ToolOutage, ToolUseConfig, load_tools, tool
from midstream.tools.mcp.client import McpToolset
from midstream.tools.mcp.config import McpServerConfig
from midstream.tools.mcp.elicitation import accept_defaults
from midstream.tools.mcp.server import http_app, make_server
from midstream.tools.sandbox.processes import usage
from midstream.tools.toolbox import ToolsetFactory

ODD = (sys.executable, str(Path(__file__).parent / "odd_server.py"))
OAUTH = {"issuer": "https://auth.example", "client_id": "trainer", "secret_env": "NO_SUCH_SECRET"}
OURS = (sys.executable, "-m", "midstream", "mcp", "calculator", "echo")


def server(*more, command=ODD, **settings):
    return McpServerConfig(command=(*command, *more), pass_env=("PYTHONPATH",), **{"timeout_s": 20.0, **settings})


def run(servers, *calls, outage="report", tools=(), use=None):
    """The session's tools, and the calls with their results."""
    factory = ToolsetFactory(lambda: McpToolset(servers))
    settings = ToolUseConfig.model_validate({"outage": outage, **(use or {})})
    box = Toolbox(tools, toolsets=[factory], use=settings)

    async def scenario():
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            return session.tools, [await session.run(name, arguments) for name, arguments in calls]

    return asyncio.run(scenario())


def test_the_tools_of_a_server_page_by_page(caplog):
    calls = [("echo", {"text": "hi"}), ("echo", {}), ("files_read", {}), ("fail", {}), ("environment", {})]
    tools, done = run({"odd": server(env={"ONE": "1"})}, *calls)
    names = [tool.name for tool in tools]
    assert names == ["echo", "die", "hang", "flood", "line", "lies", "nonsense", "files_read", "fail", "environment"]
    assert "MCP server 'odd': tool 'broken_schema': its JSON schema is invalid" in caplog.text
    (echo, _), (wrong, _), (files, result), (fail, _), (environment, _) = done
    assert echo.result == "hi"
    assert wrong.error_kind == "invalid_arguments" and "argument 'text' is missing" in wrong.result
    assert files.result == "see:\n[image image/png, 4 bytes]\nremember the milk"
    assert (result.parts[1].content, result.parts[2].source) == (b"\x89PNG", "notes://today")
    assert (fail.error_kind, fail.result) == ("raised", "Error: no luck")
    assert "ONE" in environment.result and not set(environment.result.split(",")) & {"VIRTUAL_ENV", "OMP_NUM_THREADS"}


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("die", "unavailable", "MCP server 'odd'"),
        ("hang", "timeout", "hang took longer than 1 s"),
        ("flood", "raised", "MCP server 'odd': the result is 1464 kB, above 1024 kB"),
        ("line", "unavailable", "MCP server 'odd'"),
        ("lies", "unavailable", "MCP server 'odd' answered wrongly"),
        ("nonsense", "unavailable", "MCP server 'odd' answered wrongly"),
    ],
)
def test_a_server_that_misbehaves_fails_its_own_call_and_no_other(name, kind, reason):
    servers = {"odd": server(), "other": server(tools=("echo",))}
    use = {"policies": {name: {"timeout_s": 1.0 if name == "hang" else 20.0}}}
    _, done = run(servers, (name, {}), ("other_echo", {"text": "hi"}), use=use)
    assert done[0][0].error_kind == kind and reason in done[0][0].result, done[0][0]
    assert done[1][0].result == "hi"


@pytest.mark.parametrize("what", ["silent", "dead", "flood"])
def test_a_server_that_does_not_start_is_left_out_unless_required(what, caplog):
    servers = {"broken": server(what, start_timeout_s=1.0), "odd": server(tools=("echo",))}
    tools, done = run(servers, ("echo", {"text": "hi"}))
    assert [tool.name for tool in tools] == ["echo"] and done[0][0].result == "hi"
    assert "MCP server 'broken'" in caplog.text and "its tools are left out" in caplog.text


def test_no_server_is_left_running_when_opening_is_cancelled():
    servers = {"odd": server(), "silent": server("silent"), "shared": server(shared=True)}
    before = usage(os.getpid()).pids

    async def cancelled():
        toolset = McpToolset(servers)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await toolset.open()
        assert usage(os.getpid()).pids == before
        assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("mcp-")] == []

    asyncio.run(cancelled())


def test_a_required_server_that_does_not_start_is_an_outage():
    from midstream.core.errors import ToolUnavailable

    missing = McpServerConfig(command=("/no/such/program",), required=True)
    with pytest.raises(ToolUnavailable, match="MCP server 'gone' FileNotFoundError"):
        run({"gone": missing})


def test_a_call_to_a_dead_server_is_no_training_data():
    with pytest.raises(ToolOutage, match="the tool 'die' is unavailable: MCP server 'odd'"):
        run({"odd": server()}, ("die", {}), outage="fail")


def test_names_that_two_servers_have_get_a_prefix():
    servers = {"odd": server(tools=("echo", "fail")), "other": server(tools=("echo",))}
    tools, done = run(servers, ("other_echo", {"text": "hi"}))
    assert [tool.name for tool in tools] == ["odd_echo", "fail", "other_echo"]
    assert done[0][0].result == "hi"
    with pytest.raises(ConfigError, match="two tools are named 'echo'"):
        run({"odd": server()}, tools=load_tools(["echo"]))
    tools, _ = run({"odd": server(prefix=True, tools=("echo",))}, tools=load_tools(["echo"]))
    assert [tool.name for tool in tools] == ["echo", "odd_echo"]


def test_annotations_count_only_where_the_server_is_trusted():
    for trusted in (False, True):
        tools, done = run({"odd": server(trust_annotations=trusted)}, ("fail", {}))
        by_name = {tool.name: tool.policy for tool in tools}
        assert by_name["hang"].idempotent is trusted
        assert done[0][0].error_kind == ("refused" if trusted else "raised")


def test_trajectories_share_a_server_only_if_the_config_says_so():
    async def processes(shared):
        servers = {"odd": server(tools=("echo",), shared=shared)}

        async def one():
            toolset = McpToolset(servers)
            await toolset.open()
            await toolset.list()
            connection = toolset._connections["odd"]
            assert (await toolset.call("echo", {"text": "a"})).text == "a"
            await asyncio.sleep(0.05)
            await toolset.close()
            return id(connection), connection.alive

        return await asyncio.gather(one(), one())

    apart, together = asyncio.run(processes(False)), asyncio.run(processes(True))
    assert len({connection for connection, _ in apart}) == 2
    assert len({connection for connection, _ in together}) == 1


def test_no_process_is_left_behind():
    async def scenario():
        toolset = McpToolset({"odd": server()})
        await toolset.open()
        children = _children()
        await toolset.close()
        return children

    before = _children()
    assert len(asyncio.run(scenario()) - before) == 1
    assert _children() == before


def _children():
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def test_our_tools_over_stdio():
    tools, done = run({"ours": server(command=OURS)}, ("calculator", {"expression": "6*7"}))
    assert [tool.name for tool in tools] == ["calculator", "echo"]
    assert done[0][0].result == "42"


@pytest.fixture
def served():
    """Our tools over HTTP on loopback; yields the address."""
    import socket
    import time

    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    app = http_app(Toolbox(load_tools(["calculator", "multiply"])))
    web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    web.should_exit = True
    thread.join(10)


def test_our_tools_over_http(served):
    calls = [("multiply", {"a": 6, "b": 7}), ("calculator", {"expression": "1/0"}), ("multiply", {"a": "x", "b": 1})]
    tools, done = run({"here": McpServerConfig(url=served)}, *calls)
    assert [tool.name for tool in tools] == ["calculator", "multiply"]
    assert "Example:" in tools[1].description
    assert [call.result for call, _ in done[:2]] == ["42", "Error: Error: division by zero"]
    assert done[2][0].error_kind == "invalid_arguments"


def test_every_kind_of_content_is_sent():
    parts = (
        ToolContent(kind="text", text="see:"),
        ToolContent(kind="image", text="[dot]", content=b"png", media_type="image/png"),
        ToolContent(kind="file", text="[sound]", content=b"wav", media_type="audio/wav"),
        ToolContent(kind="file", text="[a b.csv]", content=b"a,b", media_type="text/csv", source="a b.csv"),
        ToolContent(kind="file", text="[n]", content=b"\xff", media_type="text/plain", source="notes://n"),
    )

    @tool
    def everything() -> ToolResult:
        """Give one of each."""
        return ToolResult(parts)

    async def called() -> Any:
        async with Client(make_server(Toolbox([everything]))) as client:
            return (await client.call_tool("everything", {})).content

    text, image, sound, table, notes = asyncio.run(called())
    assert text.text == "see:\n[dot]\n[sound]\n[a b.csv]\n[n]"
    assert (image.type, image.data, sound.type, sound.mime_type) == ("image", "cG5n", "audio", "audio/wav")
    assert (table.resource.uri, table.resource.text) == ("result:///3/a%20b.csv", "a,b")
    assert (notes.resource.uri, notes.resource.blob) == ("notes://n", "/w==")


@pytest.mark.parametrize(
    ("schema", "content"),
    [
        ({"properties": {"n": {"type": "integer", "default": 3}, "why": {"type": "string"}}}, {"n": 3}),
        ({"properties": {"n": {"type": "integer", "default": 3}}, "required": ["n"]}, {"n": 3}),
        ({"properties": {"n": {"type": "integer"}}, "required": ["n"]}, None),
        (None, None),
    ],
)
def test_a_form_is_accepted_with_its_defaults_or_declined(schema, content):
    if schema is None:
        asked = ElicitRequestURLParams(message="log in", url="https://auth.example", elicitation_id="1")
    else:
        asked = ElicitRequestFormParams(message="how many?", requested_schema={"type": "object", **schema})
    answer = asyncio.run(accept_defaults(None, asked))
    assert (answer.action, answer.content) == ("decline" if content is None else "accept", content)


def test_an_address_without_a_server_is_left_out(caplog):
    tools, _ = run({"away": McpServerConfig(url="http://127.0.0.1:9/mcp", start_timeout_s=5.0)})
    assert tools == [] and "MCP server 'away'" in caplog.text


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "give either command or url"),
        ({"command": ["a"], "url": "http://127.0.0.1/mcp"}, "give either command or url"),
        ({"url": "http://127.0.0.1/mcp", "timeout": 3}, "did you mean 'timeout_s'"),
        (
            {"url": "http://127.0.0.1/mcp", "token_env": "A", "oauth": OAUTH},
            "oauth needs a url, and excludes token_env",
        ),
        ({"command": ["a"], "oauth": OAUTH}, "oauth needs a url"),
        ({"url": "http://127.0.0.1/mcp", "oauth": {**OAUTH, "issuer": "auth.example"}}, "issuer"),
    ],
)
def test_a_servers_settings_are_checked(settings, problem):
    from midstream.agents.config import FlowConfig
    from midstream.core.config import parse_config

    with pytest.raises(ConfigError, match=problem):
        parse_config(FlowConfig, {"mcp_servers": {"a": settings}})


def test_a_token_that_is_not_there_stops_the_run():
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN holds no token for the MCP server 'a'"):
        run({"a": McpServerConfig(url="http://127.0.0.1:9/mcp", token_env="NO_SUCH_TOKEN")})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"url": "http://127.0.0.1:1/mcp", "headers": {"Cookie": "sid=1"}}, "the header 'Cookie' was not kept"),
        ({"url": "http://127.0.0.1:1/mcp?token=abc"}, "a secret in its url was not kept"),
        ({"command": (*ODD, "--password", "a")}, "a secret in its command was not kept"),
    ],
)
def test_saved_settings_never_reach_a_server_without_their_secrets(settings, reason):
    saved = without_secrets(McpServerConfig(**settings).model_dump(mode="json"))
    with pytest.raises(ConfigError, match=reason) as error:
        asyncio.run(McpToolset({"a": McpServerConfig(**saved)}).open())
    assert "use token_env" in error.value.hint or "use pass_env" in error.value.hint
