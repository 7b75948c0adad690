"""Measures a tree of processes with `/proc`: CPU time, memory, number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STATE, CPU_TIMES, RESIDENT = 0, slice(11, 15), 21
"""Fields of `/proc/PID/stat` after the command's name; the times are utime, stime, cutime and cstime."""
DEAD = ("Z", "X")
"""States of a process that has ended but was not yet waited for."""


@dataclass(frozen=True)
class Usage:
    """Usage of a process and its descendants. `cpu_s` includes descendants that have ended."""

    pids: tuple[int, ...]
    cpu_s: float
    resident_bytes: int
    """Pages shared by several processes are counted for each of them."""


def usage(root: int) -> Usage:
    """Measure the tree of `root`; processes that end meanwhile are left out."""
    pids: list[int] = []
    cpu_s, resident = 0.0, 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
            for thread in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[STATE] not in DEAD:
            pids.append(pid)
        cpu_s += sum(map(int, fields[CPU_TIMES])) * TICK_S
        resident += int(fields[RESIDENT]) * PAGE
    return Usage(tuple(pids), cpu_s, resident)


def proportional_bytes(pids: tuple[int, ...]) -> int:
    """Return the total memory of the processes, counting each shared page once (PSS). Slower than `usage`."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total
