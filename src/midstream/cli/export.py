"""`midstream export`: a trained policy as a folder that transformers or peft loads, with a model card."""

from __future__ import annotations

import click


@click.command(name="export")
@click.argument("run_name", metavar="RUN")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder to write; not there yet.")
@click.option("--merge", is_flag=True, help="Add the adapter to its base model: a model of its own.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of a whole model's weights; auto is the base model's.",
)
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder to the hub, as a private model.")
@click.option("--public", is_flag=True, help="With --push: a public one.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(run_name: str, out: str, merge: bool, dtype: str, push: str | None, public: bool, runs_dir: str) -> None:
    """Export the policy of RUN with a model card.

    RUN is a name, a directory, 'last', or a checkpoint of a run; of a run its newest checkpoint is taken.

    \b
    midstream export last --merge --out my-model          a model that transformers loads
    midstream export last --out my-adapter                the adapter, for peft and vLLM
    """
    from midstream.api import export

    if public and push is None:
        raise click.UsageError("--public goes with --push")
    folder = export(run_name, out, merge=merge, dtype=dtype, push=push, public=public, runs_dir=runs_dir)  # type: ignore[arg-type]
    click.echo(f"written to {folder}")
    if push is not None:
        click.echo(f"pushed to {push}")
