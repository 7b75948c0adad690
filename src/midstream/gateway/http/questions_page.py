"""Renders `/plans`: the open questions of plans as forms, one HTML page without scripts or external resources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from jinja2 import Environment, PackageLoader, Template

from midstream.gateway.http.errors import ApiError
from midstream.plans import OpenQuestion

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
ANSWER = "answer"
"""Form field of the whole answer."""
PART = "answer."
"""How the form fields of an object's properties begin."""
_LAST = datetime(9999, 12, 31, 23, 59, tzinfo=UTC).timestamp()
"""The last moment that is shown: a question may expire in more years than a date can have."""


def questions_page(
    questions: Sequence[OpenQuestion], *, answered: str = "", problem: str = "", filled: Mapping[str, str] | None = None
) -> str:
    """Return the page. `answered` is the run of the question that was answered; `problem` says why an answer was
    refused, and `filled` is its form."""
    given = filled or {}
    shown = [(one, (one.run, one.id) == (given.get("run"), given.get("question"))) for one in questions]
    placed = any(refused for _, refused in shown)
    return _template().render(questions=shown, answered=answered, problem=problem, filled=given, placed=placed)


def read_form(content: bytes) -> dict[str, str]:
    """Return the fields of a submitted form. Browsers end lines with CR LF. Raises `ApiError` 400."""
    try:
        pairs = parse_qsl(content.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=1000)
    except ValueError:
        raise ApiError(400, "the body is not a form; programs POST to /plans/{run}/questions/{question}") from None
    return {name: text.replace("\r\n", "\n") for name, text in pairs}


def answer_of(fields: Mapping[str, str], schema: Mapping[str, Any]) -> Any:
    """Return the answer in the form of a question with `schema`. Empty optional properties are left out."""
    properties = schema.get("properties")
    if ANSWER in fields or not properties:
        return _value(fields.get(ANSWER, ""), schema)
    given = {name: fields.get(PART + name, "") for name in properties}
    required = schema.get("required", ())
    return {name: _value(text, properties[name]) for name, text in given.items() if text or name in required}


def choices(schema: Mapping[str, Any] | bool) -> list[Any] | None:
    """Return the values to choose from, if a question offers a choice. `true` and `false` are schemas too."""
    if isinstance(schema, bool):
        return None
    if "enum" in schema:
        return list(schema["enum"])
    if "const" in schema:
        return [schema["const"]]
    return [True, False] if schema.get("type") == "boolean" else None


def _value(text: str, schema: Mapping[str, Any] | bool) -> Any:
    """Return the value written as `text`: JSON, or the text itself where text is asked for or the text is not JSON."""
    if not isinstance(schema, bool) and schema.get("type") == "string" and choices(schema) is None:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, _LAST), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _label(value: Any) -> str:
    """Return what a button or an option says."""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("midstream.gateway", "http"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"choices": choices, "json": json.dumps, "label": _label, "time": _time}
    return environment.get_template("questions_page.html.jinja")
