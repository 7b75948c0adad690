"""Settings of the sandbox: the backend, and the limits of a call."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field

from midstream.core.config import Config

BackendName = Literal["auto", "bubblewrap", "interpreter"]


class Limits(Config):
    """Limits of one call. A session's files and memory are limited over all its calls."""

    wall_s: float = Field(default=15.0, gt=0)
    """Time limit of a call, in seconds."""
    cpu_s: float = Field(default=10.0, gt=0)
    """CPU seconds of a call, including its child processes. Checked ten times a second."""
    memory_mb: int = Field(default=512, ge=16)
    """Memory of all processes together, in MB; files in the temporary folder count towards `file_mb` instead."""
    processes: int = Field(default=64, ge=1)
    """Concurrent processes and threads."""
    files: int = Field(default=1000, ge=1)
    """Files and folders in the temporary folder."""
    file_mb: int = Field(default=64, ge=1)
    """Size of the temporary folder, and of the files that a call returns, in MB."""
    output_kb: int = Field(default=256, ge=1)
    """Printed text of a call, stdout and stderr together, in KB."""


class SandboxConfig(Config):
    """How model-written code is run."""

    backend: BackendName = "auto"
    """`bubblewrap`: full CPython in Linux namespaces. `interpreter`: a small Python without files or packages.
    `auto`: bubblewrap if it works, else the interpreter if it is installed; nothing runs unprotected."""
    limits: Limits = Limits()
    """Limits of a call, unless the caller gives others."""
    warm: int = Field(default=2, ge=0)
    """Interpreters kept ready for the next session or call."""
    concurrency: int = Field(default_factory=lambda: 2 * (os.cpu_count() or 1), ge=1)
    """Concurrent calls; further ones wait. Waiting does not count as a call's time."""
