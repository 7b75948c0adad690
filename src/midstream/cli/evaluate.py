"""`midstream eval`: how good a model, a checkpoint or a run is on a task set, with intervals."""

from __future__ import annotations

import click


@click.command(name="eval")
@click.argument("config", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", help="A model by name, directory or hub id.")
@click.option("--checkpoint", type=click.Path(), help="A checkpoint directory of a run.")
@click.option("--run", "run_name", help="A run, by name or directory: its last checkpoint.")
@click.option("--tasks", help="A task file, or the name of a built-in task set.")
@click.option("--split", default="test", show_default=True, type=click.Choice(["train", "val", "test"]))
@click.option("--n", "count", type=click.IntRange(min=1), help="Only the first N tasks.")
@click.option("--flow", help="The agent flow, by its registered name.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(
    config: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    checkpoint: str | None,
    run_name: str | None,
    tasks: str | None,
    split: str,
    count: int | None,
    flow: str | None,
    runs_dir: str,
) -> None:
    """Evaluate on held-out tasks: success by kind.

    Greedy, with 95 % intervals. CONFIG gives the flow and the reward where no run does.
    """
    from midstream.cli.tables import console, evaluation_table
    from midstream.evaluate.evaluation import evaluate_run
    from midstream.evaluate.runs import find_run

    row = evaluate_run(
        config=config,
        overrides=list(overrides),
        model=model,
        checkpoint=checkpoint,
        run=find_run(run_name, runs_dir) if run_name else None,
        tasks=tasks,
        split=split,
        n=count,
        flow=flow,
    )
    console().print(evaluation_table([row]))
