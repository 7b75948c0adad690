"""`midstream config`: what can be set, or what a config comes to once overrides and defaults are in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


@click.command(name="config")
@click.argument("config", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a config.")
def command(config: str | None, overrides: tuple[str, ...], schema: bool) -> None:
    """Print a config as it will be used, or every setting.

    Without CONFIG: every setting with its default and what it does.
    """
    from midstream.api import load_config
    from midstream.learn.config import TrainConfig

    if schema:
        click.echo(json.dumps(TrainConfig.model_json_schema(), indent=2))
    elif config is None:
        for line in reference(TrainConfig):
            click.echo(line)
    else:
        import yaml

        resolved = load_config(config, overrides)
        click.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)


def reference(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One line a setting: its dotted name, its default, and the docstring under the field."""
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from reference(section, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _text(field.get_default(call_default_factory=True))
        about = " ".join((field.description or "").split())
        yield f"{prefix}{name} = {default}" + (f"\n    {about}" if about else "")


def _text(value: Any) -> str:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, default=str, ensure_ascii=False)
