"""`midstream devices`: lists the GPUs of this machine and which are idle. Read-only: never ends a process."""

from __future__ import annotations

import time

import click

from midstream.engines.gpus import find_devices


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
