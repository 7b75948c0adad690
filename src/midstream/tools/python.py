"""`python`: runs model-written code in the sandbox (`midstream.tools.sandbox`).

Each trajectory has its own session: variables and files persist between calls, like the cells of a notebook. Concurrent
trajectories share the sandbox with its warm interpreters.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.core.toolsets import ToolContent, ToolExample, ToolResult, ToolSpec
from midstream.tools.errors import RAISED
from midstream.tools.load import ToolKind
from midstream.tools.sandbox import Result, Sandbox, SandboxConfig, Session, open_sandbox
from midstream.tools.shared import SharedResources

WAIT_S = 600.0
"""Time limit of a call in seconds, including the wait for its turn. The sandbox limits the code itself."""


class PythonSettings(Config):
    """`flow.tool_settings.python`."""

    sandbox: SandboxConfig = SandboxConfig()
    """Backend and limits."""
    state: bool = True
    """Keep variables and files between the calls of a trajectory."""
    files: dict[str, str] = Field(default_factory=dict)
    """Files placed in the code's folder: name there, and path to read from. Needs bubblewrap."""
    max_chars: int = Field(default=1800, ge=200)
    """Maximum characters of a result's text. The middle of longer text is cut, so that the end of a traceback is
    kept."""


SPEC = ToolSpec(
    name="python",
    description="Run Python code. Returns what it prints and the value of its last expression.",
    parameters={
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the program"}},
        "required": ["code"],
        "additionalProperties": False,
    },
    timeout_s=WAIT_S,
    returns="text, figures and tables",
    limits=("no network", "time, memory and output are limited"),
    best_practices=("print what you need, or end with an expression", "plot with matplotlib; figures are kept"),
    examples=(ToolExample(arguments={"code": "sum(n * n for n in range(10))"}),),
)
_BACKEND_LIMITS = {"interpreter": ("no files, packages or generators",), "bubblewrap": ()}


class PythonToolset:
    """The tool `python` of one trajectory."""

    specs: Sequence[ToolSpec] = (SPEC,)

    def __init__(self, settings: PythonSettings) -> None:
        self.resume = "replay" if settings.state else ""
        self._settings = settings
        self._sandbox: Sandbox | None = None
        self._session: Session | None = None
        self._files = {name: _content(path) for name, path in settings.files.items()}
        self._files_placed = False

    async def open(self) -> None:
        """Raises `SandboxUnavailable` if no sandbox can run on this machine."""
        config = self._settings.sandbox
        self._sandbox = await _sandboxes.acquire(config.model_dump_json(), lambda: open_sandbox(config))
        if self._settings.state:
            self._session = self._sandbox.session()

    async def list(self) -> Sequence[ToolSpec]:
        backend = self._sandbox.name if self._sandbox is not None else ""
        return [replace(SPEC, limits=SPEC.limits + _BACKEND_LIMITS.get(backend, ()))]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        assert self._sandbox is not None, "the toolset is not open"
        files = {} if self._files_placed else self._files
        code = str(arguments["code"])
        if self._session is None:
            return self._observed(await self._sandbox.run(code, self._files))
        result = await self._session.run(code, files)
        self._files_placed = not result.state_lost
        return self._observed(result)

    async def close(self) -> None:
        try:
            if self._session is not None:
                await self._session.close()
        finally:
            await _sandboxes.release(self._settings.sandbox.model_dump_json())

    def _observed(self, result: Result) -> ToolResult:
        """Return the result as an observation: text, then each figure, table or other file."""
        text = _middle_out(replace(result, files={}).observation(), self._settings.max_chars)
        parts = [ToolContent(kind="text", text=text)] if text or not result.files else []
        for name, content in result.files.items():
            media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
            kind = "image" if media_type.startswith("image/") else "file"
            note = f"[{kind} {name}, {len(content)} bytes]"
            parts.append(ToolContent(kind=kind, text=note, content=content, media_type=media_type, source=name))
        return ToolResult(tuple(parts), is_error=not result.ok, error_kind="" if result.ok else RAISED)


_sandboxes: SharedResources[Sandbox] = SharedResources(lambda sandbox: sandbox.close())


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the tool python cannot read '{path}': {error.strerror}", "name another file") from None


def _middle_out(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    mark = f"\n... [{len(text)} characters in all] ...\n"
    head = (limit - len(mark)) // 2
    return f"{text[:head]}{mark}{text[-(limit - len(mark) - head) :]}"


python = ToolKind(PythonSettings, PythonToolset)
