"""Write `configuration.md`: every setting, from the config classes and the docstrings under their fields.

    python docs/make_configuration.py

`tests/test_docs.py` fails when the page is not what this writes. Imports no torch.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from midstream.agents.agentflow.flow import AgentFlowSettings
from midstream.core.config import models_in, suffix
from midstream.gateway.config import GatewayConfig
from midstream.learn.config import TrainConfig

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the config classes. Change their docstrings, then run it. -->

A config is a YAML file. `KEY=VALUE` after it on the command line changes single settings by their dotted names; values
are read as YAML:

```bash
midstream config configs/quickstart.yaml trainer.max_steps=30 policy.lora.rank=32 'flow.tools=[search]'
```

prints what a config comes to with its defaults filled in; `midstream config` alone lists every setting, and
`midstream config --schema` prints the JSON schema. A key that does not exist is an error that names the nearest one
that does. The one section that must be given is `tasks.sources`, or `rollout.source` to train on what a store holds.

Below, `null` means not set, `NAME` in a key stands for a name, and `[]` for an item of a list.
"""
CHOICE = "`{key}.name` says which is meant, and a section `{key}` must hold it."
ALL_OF_THEM = "All of them have:"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
SETTINGS_OF_FLOWS: dict[str, type[BaseModel]] = {"agentflow": AgentFlowSettings}
TABLE = "| setting | takes | default | what it does |\n| --- | --- | --- | --- |"


def page() -> str:
    """The whole page."""
    gateway = _section(GatewayConfig, "", "## A gateway", "What `midstream gateway` reads; a file of its own.")
    return "\n".join([HEAD, *_section(TrainConfig, "", "## The run", ""), *gateway])


def _section(
    model: type[BaseModel], prefix: str, heading: str, about: str, defaults: BaseModel | None = None
) -> Iterator[str]:
    """A heading and a table of the plain settings of `model`, then a section for each nested one."""
    nested = {name: models for name, field in model.model_fields.items() if (models := models_in(field.annotation))}
    plain = {
        name: field for name, field in model.model_fields.items() if name not in nested or suffix(field.annotation)
    }
    yield f"{heading}\n" + (f"\n{about}\n" if about else "")
    yield _table(prefix, plain, defaults)
    for name, models in nested.items():
        field, key = model.model_fields[name], f"{prefix}{name}{suffix(model.model_fields[name].annotation)}"
        if len(models) > 1:
            yield from _variants(models, key, field)
            continue
        given = None if field.is_required() or suffix(field.annotation) else field.get_default()
        level = "###" if "." in key or "[]" in key else "##"
        told = _words(models[0].__doc__ if suffix(field.annotation) else field.description)
        yield from _section(models[0], f"{key}.", f"{level} `{key}`", told, given)
    if prefix == "flow.":
        for flow, settings in SETTINGS_OF_FLOWS.items():
            yield from _section(settings, "flow.settings.", f"### `flow.settings` of the flow `{flow}`", "")


def _variants(models: Sequence[type[BaseModel]], key: str, field: FieldInfo) -> Iterator[str]:
    """What all `models` share, once; then what each has of its own or another default for."""
    first, *others = models
    shared = {
        name: info
        for name, info in first.model_fields.items()
        if all(name in other.model_fields and _row("", info) == _row("", other.model_fields[name]) for other in others)
    }
    plain = {name: info for name, info in shared.items() if not models_in(info.annotation)}
    level = "###" if "." in key else "##"
    common = f" {ALL_OF_THEM}" if plain else ""
    yield f"{level} `{key}`\n\n{_words(field.description)} {CHOICE.format(key=key)}{common}\n"
    yield _table(f"{key}.", plain)
    for name in (name for name in shared if name not in plain):
        sections = models_in(shared[name].annotation)
        if len(sections) > 1:
            yield from _variants(sections, f"{key}.{name}", shared[name])
        else:
            yield from _section(sections[0], f"{key}.{name}.", f"### `{key}.{name}`", _words(sections[0].__doc__))
    for model in models:
        name = model.model_fields["name"].default
        default = ", the default" if isinstance(field.get_default(), model) else ""
        yield f"#{level} `{key}.name: {name}`{default}\n\n{_words(model.__doc__)}\n"
        own = {one: info for one, info in model.model_fields.items() if one not in shared and one != "name"}
        yield _table(f"{key}.", own)


def _table(prefix: str, fields: Mapping[str, FieldInfo], defaults: BaseModel | None = None) -> str:
    """`defaults` is what a section as a whole is when it is not given, where that is not its fields' own defaults."""
    rows = [_row(f"{prefix}{name}", field, getattr(defaults, name, None)) for name, field in fields.items()]
    return "\n".join([TABLE, *rows]) + "\n" if rows else ""


def _row(key: str, field: FieldInfo, default: Any = None) -> str:
    if default is None and not field.is_required():
        default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else f"`{json.dumps(default, ensure_ascii=False, default=str)}`"
    return f"| `{key}` | {_takes(field)} | {shown} | {_words(field.description)} |"


def _words(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _takes(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    bounds = [
        f"{words} {getattr(item, name):g}"
        for item in field.metadata
        for name, words in BOUNDS.items()
        if hasattr(item, name)
    ]
    text = _type_name(field.annotation)
    optional = text.endswith(" or null")
    return ", ".join([text.removesuffix(" or null"), *bounds]) + (", or null" if optional else "")


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if annotation is type(None):
        return "null"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is not ...:
        return f"[{', '.join(_type_name(argument) for argument in arguments)}]"
    if origin in (tuple, list):
        return f"list of {_plural(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {_plural(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    raise TypeError(f"no words for the type {annotation!r}")


def _plural(annotation: Any) -> str:
    return {"section": "sections", "number": "numbers"}.get(name := _type_name(annotation), name)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
