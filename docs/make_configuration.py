"""Writes `configuration.md`: every setting, from the config classes and the docstrings under their fields.

    python docs/make_configuration.py

`tests/test_docs.py` fails if the page is out of date. Does not import torch.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from midstream.agents.agentflow.flow import AgentFlowSettings
from midstream.agents.autonomous.flow import AutonomousSettings
from midstream.agents.black_box import CommandSettings
from midstream.agents.plan_and_execute.flow import PlanAndExecuteSettings
from midstream.agents.react.flow import ReactSettings
from midstream.agents.scheduling.flow import SchedulerSettings
from midstream.agents.team.coordinator import CoordinatorSettings
from midstream.agents.team.handoff import HandoffSettings
from midstream.agents.team.peers import PeersSettings
from midstream.agents.team.simulated_user import SimulatedUserSettings
from midstream.core.config import models_in, suffix
from midstream.gateway.config import GatewayConfig
from midstream.learn.config import TrainConfig

PAGE = Path(__file__).parent / "configuration.md"
HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the config classes. Change their docstrings, then run it. -->

A config is a YAML file. On the command line, `KEY=VALUE` after it overrides single settings by their dotted names;
values are read as YAML. This prints the resulting config with all defaults filled in:

```bash
midstream config quickstart trainer.max_steps=30 policy.lora.rank=32 'flow.tools=[search]'
```

`quickstart` and `from_store` are shipped configs; any other name is the path of a file. Without a config, `midstream
config` lists every setting; `midstream config --schema` prints the JSON schema. An unknown key is an error that names
the nearest valid key. Only one section is required: `tasks.sources`, or `rollout.source` to train on a store.

Defaults below are written in YAML. `null` means not set, `NAME` in a key stands for a name of your choice, and `[]`
for a list item.
"""
CHOICE = "A section `{key}` must set `{key}.name`, which is one of {names}."
ALL_OF_THEM = "Common settings:"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
NAMES: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
SETTINGS_OF_FLOWS: dict[str, type[BaseModel]] = {
    "agentflow": AgentFlowSettings,
    "react": ReactSettings,
    "plan_and_execute": PlanAndExecuteSettings,
    "autonomous": AutonomousSettings,
    "coordinator": CoordinatorSettings,
    "peers": PeersSettings,
    "handoff": HandoffSettings,
    "simulated_user": SimulatedUserSettings,
    "blackbox_command_agent": CommandSettings,
    "plan_scheduler": SchedulerSettings,
}
TABLE = "| setting | takes | default | what it does |\n| --- | --- | --- | --- |"


def page() -> str:
    """The whole page."""
    about = "The file that `midstream gateway FILE` reads."
    gateway = "\n".join(_section(GatewayConfig, "", "## A gateway", about))
    gateway = re.sub(r"^(#+) (`.*`)$", r"#\1 \2 of a gateway", gateway, flags=re.MULTILINE)
    return "\n".join([HEAD, *_section(TrainConfig, "", "## The run", ""), gateway])


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
        about = _words(models[0].__doc__ if suffix(field.annotation) else field.description)
        yield from _section(models[0], f"{key}.", f"{level} `{key}`", about, given)
    if prefix == "flow.":
        for flow, settings in SETTINGS_OF_FLOWS.items():
            yield from _section(settings, "flow.settings.", f"### `flow.settings` of the flow `{flow}`", "")


def _variants(models: Sequence[type[BaseModel]], key: str, field: FieldInfo) -> Iterator[str]:
    """The settings and nested sections that all `models` share, then the settings of each with its own defaults."""
    first, *others = models
    shared = {
        name
        for name, info in first.model_fields.items()
        if all(name in other.model_fields and _row("", info) == _row("", other.model_fields[name]) for other in others)
    }
    nested = {
        name: info
        for model in reversed(models)
        for name, info in model.model_fields.items()
        if models_in(info.annotation)
    }
    plain = {name: info for name, info in first.model_fields.items() if name in shared and name not in nested}
    level = "###" if "." in key else "##"
    common = f"\n\n{ALL_OF_THEM}" if plain else ""
    names = _either([f"`{model.model_fields['name'].default}`" for model in models])
    yield f"{level} `{key}`\n\n{_words(field.description)} {CHOICE.format(key=key, names=names)}{common}\n"
    if plain:
        yield _table(f"{key}.", plain)
    for name, info in nested.items():
        sections = models_in(info.annotation)
        if len(sections) > 1:
            yield from _variants(sections, f"{key}.{name}", info)
        else:
            yield from _section(sections[0], f"{key}.{name}.", f"### `{key}.{name}`", _words(sections[0].__doc__))
    for model in models:
        name = model.model_fields["name"].default
        default = ", the default" if isinstance(field.get_default(), model) else ""
        yield f"#{level} `{key}.name: {name}`{default}\n\n{_words(model.__doc__)}\n"
        own = {one: info for one, info in model.model_fields.items() if one not in shared and one != "name"}
        if own:
            yield _table(f"{key}.", own)


def _table(prefix: str, fields: Mapping[str, FieldInfo], defaults: BaseModel | None = None) -> str:
    """`defaults` is the default of the whole section, if it differs from the defaults of its fields."""
    rows = [_row(f"{prefix}{name}", field, getattr(defaults, name, None)) for name, field in fields.items()]
    return "\n".join([TABLE, *rows]) + "\n" if rows else ""


def _row(key: str, field: FieldInfo, default: Any = None) -> str:
    if default is None and not field.is_required():
        default = field.get_default(call_default_factory=True)
    shown = "required" if field.is_required() else f"`{_yaml(default)}`"
    takes = _takes(field)
    if models_in(field.annotation) and not suffix(field.annotation):
        takes = f"section [`{key}`](#{key.replace('.', '')})"
    return f"| `{key}` | {takes} | {shown} | {_words(field.description)} |"


def _yaml(value: Any) -> str:
    """`value` as YAML on one line; a section shows its name and the settings that differ from their defaults."""
    if isinstance(value, BaseModel):
        kept = value.model_dump(mode="json", exclude_defaults=True)
        value = {"name": value.name, **kept} if "name" in type(value).model_fields else kept  # pyright: ignore
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _either(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]


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
        return _either([f"`{value}`" for value in arguments])
    if origin in (typing.Union, types.UnionType):
        named = [_type_name(argument) for argument in arguments if argument is not type(None)]
        return _either(named) + (" or null" if type(None) in arguments else "")
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
