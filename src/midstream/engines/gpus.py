"""The GPUs of this machine, as nvidia-smi reports them: which there are and which are idle."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

IDLE_MEMORY_MB = 500
IDLE_PERCENT = 5
_FIELDS = ("index", "name", "memory.used", "memory.total", "utilization.gpu")
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. `processes` are the ids of the processes that use it."""

    index: int
    name: str
    used_mb: int
    total_mb: int
    percent: int
    processes: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        """Whether it is unused: no process, little memory, no load."""
        return not self.processes and self.used_mb < IDLE_MEMORY_MB and self.percent < IDLE_PERCENT


def find_devices() -> list[Device]:
    """Return the GPUs reported by nvidia-smi; none if it is missing or fails."""
    rows = _query("--query-gpu=" + ",".join(("uuid", *_FIELDS)))
    by_gpu: dict[str, list[int]] = {}
    for row in _query("--query-compute-apps=gpu_uuid,pid") if rows else []:
        if len(row) == 2 and row[1].isdigit():
            by_gpu.setdefault(row[0], []).append(int(row[1]))
    devices: list[Device] = []
    for uuid, index, name, used, total, percent in (row for row in rows if len(row) == 6):
        numbers = [int(text) if text.isdigit() else 0 for text in (index, used, total, percent)]
        place, used_mb, total_mb, load = numbers
        devices.append(Device(place, name, used_mb, total_mb, load, tuple(by_gpu.get(uuid, ()))))
    return devices


def _query(fields: str) -> list[list[str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        result = subprocess.run(
            [tool, fields, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [[cell.strip() for cell in row] for row in csv.reader(result.stdout.splitlines())]
        if result.returncode == 0
        else []
    )
