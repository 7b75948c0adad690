"""`midstream devices`: lists the GPUs of this machine and which are idle. Read-only: never ends a process."""

from __future__ import annotations

import csv
import shutil
import subprocess
import time
from dataclasses import dataclass

import click

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


@click.command(name="devices")
@click.option("--gpus", multiple=True, type=int, help="Only this GPU. Repeatable.")
@click.option("--monitor", is_flag=True, help="Repeat every few seconds, until Ctrl-C.")
@click.option(
    "--every", default=5.0, show_default=True, type=click.FloatRange(min=0.5), help="Seconds between repetitions."
)
def command(gpus: tuple[int, ...], monitor: bool, every: float) -> None:
    """Show the GPUs, their use, and which are idle. Does not end any process."""
    while True:
        devices = find_devices()
        if not devices:
            click.echo("no GPU here: the CPU is used (policy.device=cpu)")
            return
        if missing := sorted(set(gpus) - {one.index for one in devices}):
            numbers, present = (", ".join(map(str, some)) for some in (missing, [one.index for one in devices]))
            raise click.BadParameter(f"no GPU {numbers} here; there is {present}", param_hint="--gpus")
        devices = [one for one in devices if not gpus or one.index in gpus]
        for one in devices:
            state = "idle" if one.idle else f"in use by {len(one.processes) or 'other'} processes"
            click.echo(f"{one.index}  {one.name}  {one.used_mb}/{one.total_mb} MB  {one.percent} %  {state}")
        idle = ",".join(str(one.index) for one in devices if one.idle)
        if idle:
            # Without the order, CUDA numbers the fastest GPU first, while nvidia-smi numbers by bus.
            variables = f"CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={idle}"
            click.echo(f"to use the idle ones: {variables} midstream train ...")
        if not monitor:
            return
        time.sleep(every)


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
