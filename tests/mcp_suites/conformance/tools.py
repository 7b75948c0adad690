"""The tools that the conformance suite calls, as a toolset of ours for `midstream mcp`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from midstream.core.toolsets import ToolContent, ToolResult, ToolSpec

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
WAV = b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data\0\0\0\0"
SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}}},
    "properties": {"name": {"type": "string"}, "address": {"$ref": "#/$defs/address"}},
    "additionalProperties": False,
}

_TEXT = ToolContent(kind="text", text="This is a simple text response for testing.")
_IMAGE = ToolContent(kind="image", text="[a red pixel]", content=PNG, media_type="image/png")
_AUDIO = ToolContent(kind="file", text="[silence]", content=WAV, media_type="audio/wav")
_FILE = ToolContent(
    kind="file", text="[a note]", content=b"This is an embedded resource content.", media_type="text/plain"
)
_JSON = ToolContent(kind="file", text="[data]", content=b'{"value": 123}', media_type="application/json")
_PARTS = {
    "test_simple_text": (_TEXT,),
    "test_image_content": (_IMAGE,),
    "test_audio_content": (_AUDIO,),
    "test_embedded_resource": (_FILE,),
    "test_multiple_content_types": (_TEXT, _IMAGE, _JSON),
    "test_reconnection": (_TEXT,),
    "json_schema_2020_12_tool": (_TEXT,),
}


class SuiteTools:
    """Each tool returns the kind of content it is named after; `test_error_handling` fails."""

    async def open(self) -> None:
        pass

    async def list(self) -> Sequence[ToolSpec]:
        schemas = {"json_schema_2020_12_tool": SCHEMA_2020_12}
        names = (*_PARTS, "test_error_handling")
        nothing = {"type": "object", "properties": {}}
        return [
            ToolSpec(name=name, description=f"Runs {name}.", parameters=schemas.get(name, nothing)) for name in names
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        if name == "test_error_handling":
            raise ValueError("This tool intentionally returns an error for testing")
        return ToolResult(_PARTS[name])

    async def close(self) -> None:
        pass
