"""`midstream ask`: put a question to an agent and watch its modules work, turn by turn."""

from __future__ import annotations

import click


@click.command(name="ask")
@click.argument("question")
@click.option("--checkpoint", type=click.Path(), help="A checkpoint directory of a run.")
@click.option("--run", "run_name", help="A run, by name or directory. Default: the last one.")
@click.option("--config", type=click.Path(), help="A config, for an agent that was not trained.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(question: str, checkpoint: str | None, run_name: str | None, config: str | None, runs_dir: str) -> None:
    """Ask a trained agent and watch its modules work.

    Shows planner, executor, verifier and generator turn by turn. Without options, the agent of the last run answers.
    """
    from midstream.agents.ask import ask
    from midstream.cli.tables import console
    from midstream.cli.trajectory import print_trajectory
    from midstream.evaluate.runs import find_run

    run = None
    if checkpoint is None and (run_name or config is None):
        run = find_run(run_name or "last", runs_dir)
    print_trajectory(console(), ask(question, checkpoint=checkpoint, run=run, config=config))
