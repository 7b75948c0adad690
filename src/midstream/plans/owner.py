"""The name under which a process holds leases, from which others on the same machine can tell that it died."""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path


def new_owner() -> str:
    """A unique name for a holder in this process: machine, process id, its start, and a random part."""
    pid = os.getpid()
    return "/".join((_machine(), str(pid), _started(pid), uuid.uuid4().hex[:12]))


def is_dead(owner: str) -> bool:
    """Whether the process of `owner` has surely ended: it was on this machine, and no longer runs. Where that cannot
    be known, as for processes of other users that are hidden, it has not."""
    parts = owner.split("/")
    if len(parts) != 4 or parts[0] != _machine() or not parts[1].isdigit():
        return False
    pid = int(parts[1])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _started(pid)
    return bool(parts[2] and started) and parts[2] != started


def _machine() -> str:
    """This boot of this machine, and the namespace its process ids are from."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node().replace("/", "-")


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty where that is not known. A zombie has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "ended" if fields[0] == "Z" else fields[19]
