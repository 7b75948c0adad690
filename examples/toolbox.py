"""A toolbox that never crashes: search, calc, echo, multiply, called by JSON that could come from any model.

    python examples/toolbox.py

A wrong tool name goes to `echo`. Wrong arguments and failing tools print a line that begins with [Fallback].
"""

import asyncio

import midstream as ms
from midstream.tools import Toolbox, ToolSession, ToolUseConfig
from midstream.tools.calls import UnreadableCall, read_call


@ms.tool
def search(query: str) -> str:
    """Search the web."""
    return f"Searching: {query}"


@ms.tool
def calc(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


@ms.tool
def multiply(a: int, b: int) -> int:
    """Multiply two whole numbers."""
    return a * b


@ms.tool
def echo(text: str) -> str:
    """Repeat the text."""
    return text


async def answer(session: ToolSession, request: str) -> str:
    """What the tool that `request` names returns, or why it could not."""
    try:
        asked = read_call(request)
    except UnreadableCall:
        asked = read_call('{"tool": "echo"}')
        return (await session.call(asked.tool, {"text": request})).result
    call = await session.call(asked.tool, asked.args)
    return call.result if call.ok else f"[Fallback] tool {call.tool} failed: {call.result.removeprefix('Error: ')}"


REQUESTS = (
    '{"tool": "calc", "args": {"a": 10, "b": 20}}',
    '{"tool": "multiply", "args": {"a": 6, "b": 7}}',
    '{"tool": "search", "args": {"query": "weather"}}',
    '{"tool": "weather", "args": {"city": "Lima"}}',
    '{"tool": "calc", "args": {"a": "two"}}',
    "hello",
)


async def main() -> None:
    toolbox = Toolbox([search, calc, multiply, echo], use=ToolUseConfig(default_tool="echo"))
    session = toolbox.session()
    for request in REQUESTS:
        print(await answer(session, request))


if __name__ == "__main__":
    asyncio.run(main())
