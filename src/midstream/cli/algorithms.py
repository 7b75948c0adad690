"""`midstream algorithms`: the values of `algorithm.name`, `algorithm.loss.name` and `algorithm.role_credit.name`, with
their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

WIDTH = 120


@click.command(name="algorithms")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List advantage estimators, policy losses and kinds of credit per role, or describe one.

    \b
    midstream algorithms            all names with their formulas
    midstream algorithms gigpo      full description and settings
    """
    from midstream.core.config import models_in
    from midstream.core.errors import ConfigError, nearest
    from midstream.learn.algorithms import AlgorithmConfig
    from midstream.learn.algorithms.role_credit import RoleCreditConfig
    from midstream.learn.losses import LossConfig

    kinds = {
        "algorithm.name": AlgorithmConfig,
        "algorithm.loss.name": LossConfig,
        "algorithm.role_credit.name": RoleCreditConfig,
    }
    sections = {
        key: {model.model_fields["name"].default: model for model in models_in(kind)} for key, kind in kinds.items()
    }
    if name is None:
        for key, models in sections.items():
            click.secho(key, bold=True)
            for one, model in models.items():
                _paragraph(one, _first_sentence(model.__doc__))
            click.echo()
        return
    matches = [(key, models[name]) for key, models in sections.items() if name in models]
    if not matches:
        known = (one for models in sections.values() for one in models)
        raise ConfigError(f"no algorithm, loss or role credit '{name}'", nearest(name, known))
    for key, model in matches:
        click.secho(f"{key}: {name}", bold=True)
        click.echo(click.wrap_text(" ".join((model.__doc__ or "").split()), WIDTH) + "\n")
        for setting, default, description in _settings(model, key.removesuffix("name")):
            click.echo(f"  {setting} = {default}")
            click.echo(click.wrap_text(description, WIDTH, "      ", "      "))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Yield name, default and description of each setting of `model`, including nested sections. Omits the loss, the KL
    term and the credit per role, which all algorithms share."""
    from pydantic import BaseModel

    for name, field in model.model_fields.items():
        if name in ("name", "loss", "kl", "role_credit"):
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _settings(type(default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default, " ".join((field.description or "").split())


def _paragraph(name: str, text: str) -> None:
    indent = " " * 32
    click.echo(click.wrap_text(text, WIDTH, f"  {name:<30}", indent))


def _first_sentence(text: str | None) -> str:
    words = " ".join((text or "").split())
    # A sentence ends at a full stop before a capital, except after an abbreviation or inside brackets.
    for place, character in enumerate(words):
        before = words[:place]
        if (
            character == "."
            and words[place + 1 : place + 3].strip()[:1].isupper()
            and not before.endswith(("al", "eq"))
            and before.count("(") == before.count(")")
        ):
            return words[: place + 1]
    return words
