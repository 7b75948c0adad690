"""`midstream gateway`: serves a model over HTTP to agents that use OpenAI's or Anthropic's API."""

from __future__ import annotations

from typing import Any

import click


@click.command(name="gateway")
@click.argument("config", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", help="A known name, a directory, or a hub id.")
@click.option("--engine", multiple=True, help="`torch`, `scripted`, or URLs of vLLM servers, one option each.")
@click.option("--store", help="Store for trajectories: a file, or a postgresql:// URL.")
@click.option("--host", help="Address to listen on. An address that other machines can reach needs keys.")
@click.option("--port", type=int, help="Port to listen on; 0 chooses a free one.")
@click.option("--follow", help="A run directory; loads the weights it publishes.")
@click.option("--adapter", help="Follow only this adapter, of a run that trains several.")
@click.option("--tool-format", help="Format of the model's tool calls, if its template does not define one.")
def command(config: str | None, overrides: tuple[str, ...], **options: Any) -> int:
    """Serve a model to agents, and record their calls as training data.

    \b
    midstream gateway --model smollm2-135m --store agents.sqlite
    midstream gateway gateway.yaml limits.concurrency=16

    CONFIG is a YAML file; options and KEY=VALUE override it. Ctrl-C waits for running calls, then stops.
    """
    from midstream.api import load_gateway_config, serve

    if config is not None and "=" in config:
        config, overrides = None, (config, *overrides)
    settings = {name: value for name, value in options.items() if value not in (None, ())}
    serve(load_gateway_config(config, overrides, settings), on_ready=_print_address)
    return 0


def _print_address(url: str, served: str, store: str) -> None:
    click.echo(f"{served} on {url}, recording to {store}")
    click.echo(f"  POST {url}/init_trajectory opens a trajectory; give its base_url and token to your agent's client")
    click.echo(f"  {url}/docs lists all endpoints, {url}/metrics serves metrics to Prometheus")
