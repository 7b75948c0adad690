"""`midstream train`: trains an agent and shows its progress."""

from __future__ import annotations

import click


@click.command(name="train")
@click.argument("config", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--from-store", metavar="STORE", help="Train on the groups recorded in STORE instead of rolling out.")
@click.option("--resume", is_flag=True, help="Continue the run in its directory, from its last checkpoint.")
@click.option("--force", is_flag=True, help="With --resume: continue although the config changed.")
def command(config: str, overrides: tuple[str, ...], from_store: str | None, resume: bool, force: bool) -> int:
    """Train the agent of CONFIG and show its progress.

    CONFIG is a YAML file, or the name of a shipped config (quickstart, from_store). KEY=VALUE changes a setting:

    \b
    midstream train quickstart trainer.max_steps=30 policy.lora.rank=32

    Ctrl-C saves and stops; --resume continues with the numbers of an uninterrupted run. Exits with 1 when the attempts
    failed, 2 for wrong input, 130 when stopped.
    """
    from midstream.api import load_config, train
    from midstream.cli import INTERRUPTED
    from midstream.cli.live import LiveTable

    if from_store is not None:
        overrides = (f"rollout.source.store={from_store}", *overrides)
    resolved = load_config(config, overrides)
    with LiveTable() as live:
        result = train(resolved, resume=resume, force=force, callbacks=[live])
    return INTERRUPTED if result.status == "stopped" else 0
