"""The protocol of a sandbox and its data.

Every backend guarantees the same: model-written code runs with limits outside of this process, whatever it does is
reported as one of `OUTCOMES`, and the next call works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """A backend cannot run on this machine. The message says why and what to install."""


class SandboxFailed(ToolUnavailable):
    """A sandbox failed before the code ran: an infrastructure error, never caused by the code."""


@dataclass(frozen=True)
class Result:
    """Result of one call.

    `ok`: the code finished. `error`: it raised, or ended its process. `timeout`: it exceeded its wall or CPU time.
    `memory`: it exceeded its memory. `output`: it printed too much or made too many files. `refused`: it did not run.
    """

    outcome: Outcome
    stdout: str = ""
    stderr: str = ""
    """Printed text; after an error also the traceback."""
    value: str | None = None
    """Value of the last expression as text, as a notebook shows it; None without one."""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Files that the call created or changed in its folder, by relative path. Includes open matplotlib figures as
    `figure-N.png`, and a pandas table that is the last expression's value as `table-N.csv`."""
    left_out: tuple[str, ...] = ()
    """Files that were created but were too many or too large to return."""
    detail: str = ""
    """For outcomes other than `ok`: what happened, in one line."""
    state_lost: bool = False
    """Whether the session lost its variables and files with this call; its next call starts with a new state."""
    wall_s: float = 0.0
    cpu_s: float | None = None
    """CPU seconds of the call, including its child processes; None if the backend cannot measure them."""
    backend: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    def observation(self) -> str:
        """Return the result as text for a model: printed text, value, error, names of the files."""
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
    """Keeps variables and files between the calls of one trajectory, like the cells of a notebook."""

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Result:
        """Run one cell, after placing `files` in its folder. Calls wait for each other."""
        ...

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Sandbox(Protocol):
    """Runs Python code of unknown origin. Used on one event loop; `close` ends every process."""

    name: str

    async def run(self, code: str, files: Mapping[str, bytes] | None = None, limits: Limits | None = None) -> Result:
        """Run `code` once, without state. Raises `SandboxFailed` if the sandbox itself fails."""
        async with self.session(limits) as session:
            result = await session.run(code, files)
        return replace(result, state_lost=False)

    def session(self, limits: Limits | None = None) -> Session:
        """Return a new session. It starts with its first call."""
        ...

    async def close(self) -> None: ...


def refusal(code: str, files: Mapping[str, bytes], limits: Limits) -> str:
    """Return why a request cannot be run at all; empty if it can."""
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
    """Whether `name` is a relative path that stays in its folder and is valid on every file system."""
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
