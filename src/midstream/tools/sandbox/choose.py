"""Which backends this machine has, and the one to use: `open_sandbox`."""

from __future__ import annotations

from dataclasses import dataclass

from midstream.tools.sandbox import bubblewrap, interpreter
from midstream.tools.sandbox.base import Sandbox, SandboxUnavailable
from midstream.tools.sandbox.config import SandboxConfig


@dataclass(frozen=True)
class Backend:
    """One backend on this machine. `reason` says why it cannot run; empty when it can."""

    name: str
    runs: str
    reason: str

    @property
    def available(self) -> bool:
        return not self.reason


async def backends() -> list[Backend]:
    """Every backend, the safest first. Tries bubblewrap, unless it already ran in this process."""
    missing = interpreter.missing()
    return [
        Backend("bubblewrap", "full CPython with the installed packages", await bubblewrap.check()),
        Backend(
            "interpreter", "a small Python without files or packages", missing and f"{missing}\n  {interpreter.INSTALL}"
        ),
    ]


async def open_sandbox(config: SandboxConfig | None = None) -> Sandbox:
    """The sandbox `config` asks for. `auto` takes the first of `backends` that runs here: the kernel holds bubblewrap's
    processes, while the interpreter is held by its own code alone. Raises `SandboxUnavailable` when there is none."""
    config = config or SandboxConfig()
    found = await backends()
    for backend in found:
        if config.backend in ("auto", backend.name) and backend.available:
            return bubblewrap.Bubblewrap(config) if backend.name == "bubblewrap" else interpreter.Interpreter(config)
    reasons = [f"{backend.name}: {backend.reason}" for backend in found if config.backend in ("auto", backend.name)]
    raise SandboxUnavailable("no sandbox can run code here", "\n  ".join(reasons))
