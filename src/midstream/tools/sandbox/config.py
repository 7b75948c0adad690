"""Settings of the sandbox: which backend, and the limits of a call."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from midstream.core.config import Config

BackendName = Literal["auto", "bubblewrap", "interpreter"]


class Limits(Config):
    """What one call may use. A session's files and memory are bounded over all its calls."""

    wall_s: float = Field(default=15.0, gt=0)
    """Seconds a call may take."""
    cpu_s: float = Field(default=10.0, gt=0)
    """CPU seconds a call may use, its child processes included. Checked ten times a second."""
    memory_mb: int = Field(default=512, ge=16)
    """Memory of all processes together, in MB; files in the temporary folder count towards `file_mb` instead."""
    processes: int = Field(default=64, ge=1)
    """Processes and threads at once."""
    files: int = Field(default=1000, ge=1)
    """Files and folders that may exist in the temporary folder."""
    file_mb: int = Field(default=64, ge=1)
    """Size of the temporary folder in MB, and of the files a call returns."""
    output_kb: int = Field(default=256, ge=1)
    """What a call may print to stdout and stderr together, in KB."""


class SandboxConfig(Config):
    """How code that a model wrote is run."""

    backend: BackendName = "auto"
    """`bubblewrap`: full CPython in Linux namespaces. `interpreter`: a small Python without files or packages.
    `auto`: bubblewrap where it works, else the interpreter where it is installed; nothing runs unprotected."""
    limits: Limits = Limits()
    """What a call may use where the caller does not say."""
    warm: int = Field(default=2, ge=0)
    """Interpreters kept ready for the next session or call."""
    concurrency: int = Field(default_factory=lambda: 2 * (os.cpu_count() or 1), ge=1)
    """Calls that run at once; further ones wait. Waiting does not count as a call's time."""
