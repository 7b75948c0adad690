"""Selects a backend: `backends` lists those of this machine, `open_sandbox` opens one."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.tools.sandbox import bubblewrap, interpreter
from midstream.tools.sandbox.base import Sandbox, SandboxUnavailable
from midstream.tools.sandbox.config import SandboxConfig


@dataclass(frozen=True)
class Backend:
    """One backend on this machine. `reason` says why it cannot run; empty if it can."""

    name: str
    runs: str
    reason: str

    @property
    def available(self) -> bool:
        return not self.reason


async def backends() -> list[Backend]:
    """Return all backends, safest first. Tries bubblewrap, unless it has already run in this process."""
    missing = interpreter.missing()
    return [
        Backend("bubblewrap", "full CPython with the installed packages", await bubblewrap.check()),
        Backend(
            "interpreter", "a small Python without files or packages", missing and f"{missing}\n  {interpreter.INSTALL}"
        ),
    ]


async def open_sandbox(config: SandboxConfig | None = None) -> Sandbox:
    """Return the sandbox of `config`. `auto` selects the first of `backends` that can run: the kernel confines
    bubblewrap's processes, while the interpreter is confined by its own code only. Raises `SandboxUnavailable` if none
    can."""
    config = config or SandboxConfig()
    found = await backends()
    for backend in found:
        if config.backend in ("auto", backend.name) and backend.available:
            return bubblewrap.Bubblewrap(config) if backend.name == "bubblewrap" else interpreter.Interpreter(config)
    reasons = [f"{backend.name}: {backend.reason}" for backend in found if config.backend in ("auto", backend.name)]
    raise SandboxUnavailable("no sandbox can run code here", "\n  ".join(reasons))
