"""Tools: the `@tool` declaration, validated calls with time limits and budgets, and the built-in tools."""

from midstream.tools.declare import Tool, ToolError, tool
from midstream.tools.load import load_tools
from midstream.tools.mask import mask_retrieved_tokens
from midstream.tools.session import Toolbox, ToolSession
from midstream.tools.toolset import FunctionToolset

__all__ = [
    "FunctionToolset",
    "Tool",
    "ToolError",
    "ToolSession",
    "Toolbox",
    "load_tools",
    "mask_retrieved_tokens",
    "tool",
]
