"""Tools: the `@tool` declaration, validated calls with policies and budgets, and the built-in tools."""

from midstream.tools.config import Budget, PolicyConfig, ToolUseConfig
from midstream.tools.declare import Tool, tool
from midstream.tools.errors import ToolError, ToolOutage, TransientToolError
from midstream.tools.load import load_tools
from midstream.tools.mask import mask_retrieved_tokens
from midstream.tools.session import ToolSession
from midstream.tools.toolbox import Toolbox
from midstream.tools.toolset import FunctionToolset

__all__ = [
    "Budget",
    "FunctionToolset",
    "PolicyConfig",
    "Tool",
    "ToolError",
    "ToolOutage",
    "ToolSession",
    "ToolUseConfig",
    "Toolbox",
    "TransientToolError",
    "load_tools",
    "mask_retrieved_tokens",
    "tool",
]
