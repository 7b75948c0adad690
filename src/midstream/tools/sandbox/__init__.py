"""Runs model-written code outside of this process, with limits and a defined outcome.

`open_sandbox(config)` returns the best backend of this machine; `Sandbox.run` runs one piece of code, and
`Sandbox.session` keeps variables and files between calls. A backend in a container or on another machine implements the
same protocol and passes the same tests (`tests/tools/sandbox`).
"""

from midstream.tools.sandbox.base import Result, Sandbox, SandboxFailed, SandboxUnavailable, Session
from midstream.tools.sandbox.choose import Backend, backends, open_sandbox
from midstream.tools.sandbox.config import Limits, SandboxConfig

__all__ = [
    "Backend",
    "Limits",
    "Result",
    "Sandbox",
    "SandboxConfig",
    "SandboxFailed",
    "SandboxUnavailable",
    "Session",
    "backends",
    "open_sandbox",
]
