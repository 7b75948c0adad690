"""How models write tool calls and thoughts into their text: one module a family, one interface."""

from midstream.engines.formats.base import CalledTool, ChatFormat, Delta, Guard, Reply, ReplyReader, ToolChoice
from midstream.engines.formats.choose import FORMATS, format_of
from midstream.engines.formats.grammar import response_constraint

__all__ = [
    "FORMATS",
    "CalledTool",
    "ChatFormat",
    "Delta",
    "Guard",
    "Reply",
    "ReplyReader",
    "ToolChoice",
    "format_of",
    "response_constraint",
]
