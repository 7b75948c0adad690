"""`read_file`: reads text files in one folder. Symbolic links are refused, because they may lead out of it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from pydantic import Field

from midstream.core.config import Config
from midstream.core.errors import ConfigError
from midstream.core.toolsets import ToolContent, ToolResult
from midstream.tools.declare import tool
from midstream.tools.errors import ToolError
from midstream.tools.load import ToolKind
from midstream.tools.toolset import FunctionToolset

MAX_PATH_CHARS = 400
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class ReadFileSettings(Config):
    """`flow.tool_settings.read_file`."""

    folder: str
    """The folder. Nothing outside it can be read."""
    max_kb: int = Field(default=1024, ge=1)
    """Largest file."""
    max_lines: int = Field(default=200, ge=1)
    """Lines returned by one call."""


def read_file_toolset(settings: ReadFileSettings) -> FunctionToolset:
    """Return the tool. Raises `ConfigError` if the folder does not exist."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise ConfigError(f"read_file: there is no folder '{folder}'", "set its folder")

    @tool(
        idempotent=True,
        returns="text with the number of each line's file position",
        limits=["text files only"],
        examples=[{"path": "notes/today.txt"}],
    )
    def read_file(path: str, first_line: int = 1) -> ToolResult:
        """Read a text file.

        Args:
            path: relative to the folder
            first_line: where to begin
        """
        lines = _text(folder, path, settings.max_kb << 10).splitlines()
        if first_line < 1 or first_line > max(len(lines), 1):
            raise ToolError(f"the file has {len(lines)} lines")
        last = first_line - 1 + settings.max_lines
        shown = "\n".join(lines[first_line - 1 : last])
        more = f"\n[lines {last + 1} to {len(lines)} are left]" if last < len(lines) else ""
        return ToolResult((ToolContent(kind="text", text=shown + more, source=path),))

    return FunctionToolset([read_file])


def _text(folder: Path, path: str, limit: int) -> str:
    parts = path.split("/")
    if len(path) > MAX_PATH_CHARS or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ToolError(f"'{path[:80]}' is not a path inside the folder, such as notes/today.txt")
    # opened part by part, so that no part can be replaced by a link between check and use
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            inner = os.open(part, _READ if last else _READ | os.O_DIRECTORY, dir_fd=opened)
            os.close(opened)
            opened = inner
        details = os.fstat(opened)
        if not stat.S_ISREG(details.st_mode):
            raise ToolError(f"'{path}' is not a file")
        if details.st_size > limit:
            raise ToolError(f"'{path}' is larger than {limit >> 10} kB")
        content = b"".join(iter(lambda: os.read(opened, 1 << 16), b"")) if details.st_size else b""
    except OSError as error:
        reason = "links are not followed" if error.errno == errno.ELOOP else (error.strerror or "").lower()
        raise ToolError(f"'{path}' cannot be read: {reason}") from None
    finally:
        os.close(opened)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ToolError(f"'{path}' is not a text file") from None


read_file = ToolKind(ReadFileSettings, read_file_toolset)
