"""Chat formats of tool calls and thoughts: one module per model family, recognized by the chat template."""

from midstream.engines.formats.chat_format import ChatFormat, Guard
from midstream.engines.formats.constraints import constrain, response_constraint
from midstream.engines.formats.recognition import FORMATS, format_of
from midstream.engines.formats.reply import CalledTool, Delta, Reply, ReplyParser, ToolChoice

__all__ = [
    "FORMATS",
    "CalledTool",
    "ChatFormat",
    "Delta",
    "Guard",
    "Reply",
    "ReplyParser",
    "ToolChoice",
    "constrain",
    "format_of",
    "response_constraint",
]
