"""How models write tool calls and thoughts into their text: one module a family, one interface."""

from midstream.engines.formats.base import CalledTool, ChatFormat, Delta, Reply, ReplyReader

__all__ = ["CalledTool", "ChatFormat", "Delta", "Reply", "ReplyReader"]
