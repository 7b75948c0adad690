"""`midstream algorithms`: what `algorithm.name` and `algorithm.loss.name` may be, with the formula of each."""

from __future__ import annotations

import click


@click.command(name="algorithms")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List advantage estimators and policy losses, or tell all about one.

    \b
    midstream algorithms            every name with its formula
    midstream algorithms gigpo      the whole of it, with its settings
    """
    from midstream.core.config import models_in
    from midstream.core.errors import ConfigError, nearest
    from midstream.learn.algorithms import AlgorithmConfig
    from midstream.learn.losses import LossConfig

    sections = {
        "algorithm.name": {model.model_fields["name"].default: model for model in models_in(AlgorithmConfig)},
        "algorithm.loss.name": {model.model_fields["name"].default: model for model in models_in(LossConfig)},
    }
    if name is None:
        for key, models in sections.items():
            click.secho(key, bold=True)
            for one, model in models.items():
                click.echo(f"  {one:<30}{_first_sentence(model.__doc__)}")
            click.echo()
        return
    found = [(key, models[name]) for key, models in sections.items() if name in models]
    if not found:
        raise ConfigError(
            f"no algorithm or loss '{name}'", nearest(name, (one for models in sections.values() for one in models))
        )
    for key, model in found:
        click.secho(f"{key}: {name}", bold=True)
        click.echo(f"{' '.join((model.__doc__ or '').split())}\n")
        for setting, field in model.model_fields.items():
            if setting not in ("name", "loss", "kl"):
                told = " ".join((field.description or "").split())
                click.echo(f"  {key.removesuffix('name')}{setting} = {field.get_default(call_default_factory=True)}")
                click.echo(f"      {told}")


def _first_sentence(text: str | None) -> str:
    words = " ".join((text or "").split())
    # A sentence ends where a capital follows; "et al." and "eq." do not end one.
    for place, character in enumerate(words):
        if character == "." and words[place + 1 : place + 3].strip()[:1].isupper() and not words[:place].endswith("al"):
            return words[: place + 1]
    return words
