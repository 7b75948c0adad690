"""`midstream rollout`: runs an agent flow against a gateway, which samples and records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from midstream.core.failures import first_traceback
from midstream.core.text import visible

if TYPE_CHECKING:
    from midstream.core.types import Trajectory


@click.command(name="rollout")
@click.argument("config", type=click.Path())
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--gateway", required=True, metavar="URL", help="The gateway, such as http://127.0.0.1:8100.")
@click.option("--key-env", metavar="NAME", help="Environment variable with a key of the gateway.")
@click.option("--split", default="train", show_default=True, help="Tasks to attempt.")
@click.option(
    "--tasks", default=8, show_default=True, help="Number of tasks; each is attempted rollout.group_size times."
)
@click.option("--channel", default="train", show_default=True, help="Channel to record in.")
def command(config: str, overrides: tuple[str, ...], gateway: str, key_env: str | None, **options: object) -> None:
    """Run the flow of CONFIG on its tasks against a gateway.

    \b
    midstream gateway --store agents.sqlite
    midstream rollout quickstart --gateway http://127.0.0.1:8100 --tasks 4
    midstream train from_store --from-store agents.sqlite
    """
    from midstream.api import load_config, rollout

    def print_line(trajectory: Trajectory) -> None:
        reward = "-" if trajectory.reward is None else f"{trajectory.reward:.2f}"
        error = f": {trajectory.error}" if trajectory.error else ""
        line = f"{trajectory.uid}  {trajectory.status}  reward {reward}  {len(trajectory.steps)} calls{error}"
        click.echo(visible(line))

    resolved = load_config(config, overrides)
    trajectories = rollout(resolved, gateway, key_env=key_env, on_done=print_line, **options)  # type: ignore[arg-type]
    rewards = [t.reward for t in trajectories if t.reward is not None]
    mean = f"{sum(rewards) / len(rewards):.3f}" if rewards else "-"
    click.echo(f"{len(trajectories)} trajectories, mean reward {mean}")
    if traceback := first_traceback(trajectories):
        click.echo(visible(f"\n{traceback}"))
