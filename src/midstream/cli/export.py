"""`midstream export`: writes a trained policy to a folder that transformers or peft can load, with a model card."""

from __future__ import annotations

import click


@click.command(name="export")
@click.argument("run_name", metavar="RUN")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder to create.")
@click.option("--merge", is_flag=True, help="Merge the adapter into its base model and write the whole model.")
@click.option("--adapter", metavar="NAME", help="Write one adapter, of a run that trains several.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Type of a whole model's weights; auto is the base model's.",
)
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder to the hub as a private model.")
@click.option("--public", is_flag=True, help="With --push: upload as a public model.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
def command(
    run_name: str,
    out: str,
    merge: bool,
    adapter: str | None,
    dtype: str,
    push: str | None,
    public: bool,
    runs_dir: str,
) -> None:
    """Export the policy of RUN with a model card.

    RUN is a name, a directory, 'last', or a checkpoint of a run. For a run, exports its newest checkpoint.

    \b
    midstream export last --merge --out my-model          a model for transformers
    midstream export last --out my-adapter                an adapter for peft and vLLM
    """
    from midstream.api import export

    if public and push is None:
        raise click.UsageError("--public needs --push")
    folder = export(
        run_name,
        out,
        merge=merge,
        adapter=adapter,
        dtype=dtype,  # pyright: ignore[reportArgumentType]  click checks the choice
        push=push,
        public=public,
        runs_dir=runs_dir,
    )
    click.echo(f"written to {folder}")
    if push is not None:
        click.echo(f"pushed to {push}")
