"""`midstream config`: list every setting, or print a config with overrides and defaults applied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel


@click.command(name="config")
@click.argument("config", type=click.Path(), required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--schema", is_flag=True, help="Print the JSON schema of a config.")
def command(config: str | None, overrides: tuple[str, ...], schema: bool) -> None:
    """Print a config with defaults and overrides applied, or list every setting.

    Without CONFIG, lists every setting with its default and description.
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
    """Yield one entry per setting: dotted name, default and the docstring under the field. `[]` stands for a list item,
    NAME for a key of a mapping."""
    from midstream.core.config import models_in, suffix

    for name, field in model.model_fields.items():
        sections, key = models_in(field.annotation), f"{prefix}{name}{suffix(field.annotation)}"
        if len(sections) == 1:
            yield from reference(sections[0], f"{key}.")
        elif sections:
            default = getattr(field.get_default(call_default_factory=True), "name", None)
            yield from _choices(sections, key, default)
        else:
            default = "required" if field.is_required() else _text(field.get_default(call_default_factory=True))
            about = " ".join((field.description or "").split())
            yield f"{prefix}{name} = {default}" + (f"\n    {about}" if about else "")
    if prefix == "flow.":
        from midstream.agents.agentflow.flow import AgentFlowSettings

        for entry in reference(AgentFlowSettings, "flow.settings."):
            yield _only(entry, "of the flow agentflow")


def _choices(sections: Sequence[type[BaseModel]], key: str, default: str | None) -> Iterator[str]:
    """Yield the settings that all `sections` share, then those of each section."""
    entries = {section.model_fields["name"].default: list(reference(section, f"{key}.")) for section in sections}
    shared = [entry for entry in next(iter(entries.values())) if all(entry in other for other in entries.values())]
    yield f"{key}.name = {_text(default)}\n    One of {', '.join(entries)}."
    yield from shared
    for name, own in entries.items():
        yield from (
            _only(entry, f"of {name}") for entry in own if entry not in shared and not entry.startswith(f"{key}.name ")
        )


def _only(entry: str, scope: str) -> str:
    first, newline, rest = entry.partition("\n")
    return f"{first}  ({scope}){newline}{rest}"


def _text(value: Any) -> str:
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, default=str, ensure_ascii=False)
