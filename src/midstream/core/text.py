"""Text from outside: halves of surrogate pairs cleaned where it enters, control sequences made visible where it is
shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_SURROGATE = re.compile("[\ud800-\udfff]")
# C0 and C1 controls but for tab and line feed, marks that reorder what is read, and what no terminal can encode.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def cleaned(text: str) -> str:
    """`text` as valid Unicode: two halves of a surrogate pair become their character, one alone U+FFFD. Programs that
    cut text anywhere leave such halves, and no encoding carries them."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cleaned_json(value: Any) -> Any:
    """`value`, JSON data, with every text and key `cleaned`."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned_json(key): cleaned_json(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [cleaned_json(item) for item in cast("list[Any]", value)]
    return value


def visible(text: str) -> str:
    """`text` for a terminal: control characters are written as escapes (`\\x1b`), so that what a model or a tool wrote
    can neither move the cursor nor change what stands there. Tabs and line breaks stay; idempotent."""
    return _CONTROL.sub(_escape, text.replace("\r\n", "\n"))


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return {13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
