"""The config base: strict pydantic models, YAML files, dotted overrides, and errors that name the nearest valid key."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from midstream.core.errors import ConfigError, nearest
from midstream.core.shipped import find_config, shipped_configs

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config section. Unknown keys are errors; the docstring under a field is its reference."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from a file, or from the shipped config of that name. Raises `ConfigError`, with the line if
    the YAML is invalid."""
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        closest = nearest(str(path), shipped_configs())
        raise ConfigError(
            f"no config file at '{path}'",
            f"give a YAML file, or the name of a shipped config; {closest}",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read '{path}': {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{path}' is not valid YAML: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must contain a mapping of settings, not a {type(data).__name__}")
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `data` with each `a.b.c=value` applied; values are YAML (`1e-4`, `true`, `[a, b]`, `{a: 1}`)."""
    result = _copy(data)
    for override in overrides:
        key, equals, raw = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override '{override}' is not of the form key=value", "for example trainer.max_steps=30")
        target = result
        *parents, leaf = key.strip().split(".")
        for name in parents:
            nested = target.setdefault(name, {})
            if not isinstance(nested, dict):
                raise ConfigError(f"override '{override}': '{name}' is a value, not a section")
            target = nested
        try:
            target[leaf] = _number(yaml.safe_load(raw))
        except yaml.YAMLError:
            raise ConfigError(
                f"override '{override}': the value is not valid YAML", "quote text that contains : { [ or #"
            ) from None
    return result


def parse_config(model: type[C], data: dict[str, Any], source: str = "config") -> C:
    """Validate `data` as `model`. A single `ConfigError` lists all errors, each with a hint."""
    try:
        return model.model_validate(_numbers(data))
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{source} is not valid:\n  " + "\n  ".join(lines)) from None


def _explain(model: type[BaseModel], item: Any) -> str:
    dotted = ".".join(str(part) for part in _section(model, item["loc"])[2])
    if item["type"] == "extra_forbidden":
        section, variant, path = _section(model, item["loc"][:-1])
        hint = nearest(str(item["loc"][-1]), section.model_fields if section else ())
        if variant is None or hint.startswith("did you mean"):
            return f"{dotted}: unknown key; {hint}"
        # The likely cause: the file configures one variant, and an override changed only the tag.
        whole = ".".join(map(str, path))
        return (
            f"{dotted}: unknown key; '{variant}' has no such setting, but {hint.removeprefix('one of: ')}; "
            f"override the whole section to remove it: '{whole}={{{_tag_field(section)}: {variant}}}'"
        )
    if item["type"] == "missing":
        return f"{dotted}: is required"
    if item["type"] == "union_tag_not_found":
        key = item["ctx"]["discriminator"].strip("'")
        return f"{dotted}.{key}: is required when other settings of {dotted} are given"
    message = item["msg"].removeprefix("Value error, ")
    # For conflicting settings the message names the relevant ones; the input would be the whole section.
    if isinstance(item["input"], dict) and item["type"] == "value_error":
        return f"{dotted}: {message}" if dotted else message
    return f"{dotted}: {message} (got {item['input']!r})"


def _section(model: type[BaseModel], path: Sequence[Any]) -> tuple[type[BaseModel] | None, str | None, list[Any]]:
    """Return the config class at `path` inside `model`, its tag if it is a union variant, and the path as a user writes
    it (pydantic's variant tags removed)."""
    current: type[BaseModel] | None = model
    variant: str | None = None
    pending: Any = None
    written: list[Any] = []
    for part in path:
        if current is not None and part in current.model_fields:
            pending, variant = current.model_fields[part].annotation, None
            models = models_in(pending)
            current = models[0] if models else None
        elif named := [m for m in models_in(pending) if m.__name__ == part or _tag(m) == part]:
            current, variant = named[0], _tag(named[0])
            continue
        written.append(part)
    return current, variant, written


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """List the config classes a field of type `annotation` may hold, including inside collections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        return [model for arg in typing.get_args(annotation) for model in models_in(arg)]
    return []


def suffix(annotation: Any) -> str:
    """Return the separator between a collection's key and its items' keys: `[]`, `.NAME` or nothing."""
    return {list: "[]", dict: ".NAME"}.get(typing.get_origin(annotation), "")


def _tag(model: type[BaseModel]) -> str | None:
    field = _tag_field(model)
    return None if field is None else model.model_fields[field].default


def _tag_field(model: type[BaseModel] | None) -> str | None:
    """Return the name of the key that selects `model` in a union."""
    return next((name for name in ("type", "name") if model is not None and name in model.model_fields), None)


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _copy(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_copy(item) for item in data]
    return data


def _numbers(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _numbers(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_numbers(item) for item in data]
    return _number(data)


def _number(value: Any) -> Any:
    """Convert numbers such as `1e-4`, which YAML 1.1 reads as text."""
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
