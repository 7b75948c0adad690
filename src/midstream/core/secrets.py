"""Removes secrets from settings written to runs, checkpoints and reports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

NOT_KEPT = "<not-kept>"
"""Replaces a value that may be a secret in saved settings."""

_KEY = re.compile(r"(?i)(^|[_-])(api[_-]?key|key|password|passwd|secret|token|authorization|credentials?)$")
# A password ends at the last @ before the path, because user name and password may contain @. Without an @ before the
# first slash, the slash is part of the password, unless it follows a port.
_IN_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/\s:]*):(?:[^/\s]+|(?!\d+[/?#])[^\s'\",]+)@")
_IN_QUERY = re.compile(r"(?i)([?&](?:[\w-]*[_-])?(?:api[_-]?key|key|password|secret|token|sig)=)[^&\s#]+")
# Key formats of well-known services, and values after flags or headers that carry a key.
_SHAPES = re.compile(
    r"\b(sk-|sk_)(?=[A-Za-z_\-]*\d)[A-Za-z0-9_\-]{20,}"
    r"|\b(hf_|ghp_|gho_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza)[A-Za-z0-9_\-]{12,}"
    r"|\bm[so]-[\w\-]+\.\d+\.[\w\-]+"
    r"|(?i:(?<=--api-key[ =])|(?<=--token[ =])|(?<=--password[ =])|(?<=bearer )|(?<=api-key: ))[^\s'\"]+"
)
_FLAG = re.compile(r"(?i)--?([\w-]*[_-])?(api[_-]?key|password|passwd|secret|token)")
_PLACEHOLDER = re.compile(r"\{(question|model)\}")


def without_secrets(settings: Any) -> Any:
    """Return `settings` (JSON data) with these replaced by `NOT_KEPT`: passwords in URLs, values of `env` and
    `headers`, values of keys named like secrets, list items after flags such as `--token`, and texts that look like API
    keys."""
    if isinstance(settings, Mapping):
        kept: dict[str, Any] = {}
        for name, value in cast("Mapping[str, Any]", settings).items():
            if name == "env" and isinstance(value, Mapping):
                variables = cast("Mapping[str, Any]", value)
                kept[name] = {key: text if _is_placeholder(text) else NOT_KEPT for key, text in variables.items()}
            elif name == "headers" and isinstance(value, Mapping):
                kept[name] = dict.fromkeys(cast("Mapping[str, Any]", value), NOT_KEPT)
            elif isinstance(value, str) and value and _KEY.search(name):
                kept[name] = NOT_KEPT
            else:
                kept[name] = without_secrets(value)
        return kept
    if isinstance(settings, list | tuple):
        items = list(cast("list[Any]", settings))
        return [
            NOT_KEPT if _is_flag(before) and _is_value(item) else without_secrets(item)
            for before, item in zip([None, *items], items, strict=False)
        ]
    return text_without_secrets(settings) if isinstance(settings, str) else settings


def text_without_secrets(text: str) -> str:
    """Return `text` with passwords in URLs and anything that looks like a key replaced."""
    text = _IN_URL.sub(rf"\1:{NOT_KEPT}@", text)
    text = _IN_QUERY.sub(rf"\1{NOT_KEPT}", text)
    return _SHAPES.sub(NOT_KEPT, text)


def _is_placeholder(text: Any) -> bool:
    return isinstance(text, str) and _PLACEHOLDER.fullmatch(text) is not None


def _is_flag(item: Any) -> bool:
    """Whether the next word of a command is a secret."""
    return isinstance(item, str) and _FLAG.fullmatch(item) is not None


def _is_value(item: Any) -> bool:
    return isinstance(item, str) and not item.startswith("-") and not _is_placeholder(item)
