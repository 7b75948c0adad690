"""`midstream ask`: ask an agent a question and print what its modules do, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


@click.command(name="ask")
@click.argument("question")
@click.option("--checkpoint", type=click.Path(), help="A checkpoint directory of a run.")
@click.option("--run", "run_name", help="A run, by name or directory. Default: the last finished run.")
@click.option("--config", type=click.Path(), help="A config, for an untrained agent.")
@click.option("--model", help="A model by name, directory or hub id; with --config, replaces the config's model.")
@click.option(
    "--set",
    "metadata",
    multiple=True,
    metavar="KEY=VALUE",
    help="Metadata of the task, passed to the flow as keyword arguments; the value is YAML. Repeatable.",
)
@click.option("--trust", is_flag=True, help="Allow a run from elsewhere to run code of its config; lists it first.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(
    question: str,
    checkpoint: str | None,
    run_name: str | None,
    config: str | None,
    model: str | None,
    metadata: tuple[str, ...],
    trust: bool,
    runs_dir: str,
) -> None:
    """Ask a trained agent a question and watch its modules work.

    Shows planner, executor, verifier and generator turn by turn. Without options, uses the agent of the last finished
    run.
    """
    from midstream.api import ask
    from midstream.cli.tables import console
    from midstream.cli.trajectory import print_trajectory

    trajectory = ask(
        question,
        run=run_name,
        checkpoint=checkpoint,
        config=config,
        model=model,
        metadata=_read(metadata),
        runs_dir=runs_dir,
        trust=trust,
    )
    print_trajectory(console(), trajectory)


def _read(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` pairs; raises `ConfigError` for anything else."""
    import yaml

    from midstream.core.errors import ConfigError

    metadata: dict[str, Any] = {}
    for pair in pairs:
        key, equals, raw = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair} is not of the form KEY=VALUE", "for example --set item=figs")
        try:
            metadata[key.strip()] = yaml.safe_load(raw)
        except yaml.YAMLError:
            metadata[key.strip()] = raw
    return metadata
