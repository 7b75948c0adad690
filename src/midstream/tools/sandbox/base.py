"""The protocol of a sandbox, and the data that goes in and comes out.

Every backend gives the same promises: code that a model wrote runs with limits and away from our process, whatever it
does is reported as one of `OUTCOMES`, and the next call works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

from midstream.core.errors import ToolUnavailable, UserError
from midstream.tools.sandbox.config import Limits

Outcome = Literal["ok", "error", "timeout", "memory", "output", "refused"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MAX_SOURCE_BYTES = 1 << 20
MAX_NAME_CHARS = 200


class SandboxUnavailable(UserError):
    """A backend cannot run on this machine; the message says why and what to install."""


class SandboxFailed(ToolUnavailable):
    """A sandbox broke before the code ran: an infrastructure error, never a property of the code."""


@dataclass(frozen=True)
class Result:
    """What became of one call.

    `ok`: ran to its end. `error`: raised, or ended its process. `timeout`: used more wall or CPU time than allowed.
    `memory`: more memory. `output`: printed more, or made more files. `refused`: was not run.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    """What was printed there; of an error also the traceback."""
    value: str | None = None
    """The last expression's value as text, as a notebook shows it; None when there is none."""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Files the call created or changed in its folder, by relative path. Open matplotlib figures are in it as
    `figure-N.png`, a table (pandas) that is the last expression's value as `table-N.csv`."""
    left_out: tuple[str, ...] = ()
    """Files that were created but were too many or too large to return."""
    detail: str = ""
    """For outcomes other than `ok`: what happened, in one line."""
    state_lost: bool = False
    """The session lost its variables and files with this call; its next call starts afresh."""
    wall_s: float = 0.0
    cpu_s: float | None = None
    """CPU seconds of the call with its child processes; None where the backend cannot tell."""
    backend: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    def observation(self) -> str:
        """The result as text for a model: what was printed, the value, the error, the names of the files."""
        parts = [self.stdout.rstrip("\n"), self.value or "", self.stderr.rstrip("\n")]
        if self.outcome != "ok" and self.detail and self.detail not in self.stderr:
            parts.append(f"[{self.outcome}] {self.detail}")
        if self.state_lost:
            parts.append("[variables and files of earlier calls are gone]")
        if self.files:
            parts.append("[files] " + ", ".join(self.files))
        if self.left_out:
            parts.append("[files not returned] " + ", ".join(self.left_out))
        return "\n".join(part for part in parts if part)


class Session(Protocol):
    """Keeps variables and files between calls, like the cells of a notebook; for one trajectory."""

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Result:
        """Run one cell; `files` are put into its folder first. Calls wait for each other."""
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Sandbox(Protocol):
    """Runs Python code of unknown origin. Used on one event loop; `close` ends every process."""

    @property
    def name(self) -> str: ...

    async def run(self, code: str, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Result:
        """Run `code` once, with no state before or after. Raises `SandboxFailed` when the sandbox itself breaks."""
        ...

    def session(self, limits: Limits | None = None) -> Session:
        """A session of its own; starts with its first call."""
        ...

    async def close(self) -> None: ...


def refusal(code: str, files: Mapping[str, bytes], limits: Limits) -> str:
    """Why a request cannot be run at all, or an empty text."""
    size = len(code.encode("utf-8", "surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        return f"the source is {size / (1 << 20):.1f} MB; at most {MAX_SOURCE_BYTES >> 20} MB is run"
    if "\0" in code or any("\ud800" <= char <= "\udfff" for char in code):
        return "the source holds a character that Python source cannot hold"
    for name in files:
        if not safe_name(name):
            return f"'{name[:MAX_NAME_CHARS]}' is not a relative path inside the sandbox's folder"
    if len(files) > limits.files:
        return f"{len(files)} files are given; at most {limits.files} are taken"
    total = sum(map(len, files.values()))
    if total > limits.file_mb << 20:
        return f"the files given hold {total / (1 << 20):.1f} MB; at most {limits.file_mb} MB are taken"
    return ""


def safe_name(name: str) -> bool:
    """Whether `name` is a relative path that stays in its folder and every file system can hold."""
    parts = PurePosixPath(name).parts
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and "\\" not in name
        and bool(parts)
        and not name.startswith("/")
        and ".." not in parts
        and str(PurePosixPath(name)) == name
        and name != "."
    )
