"""Renders `/docs`: the OpenAPI description as one HTML page without scripts or external resources."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup, escape

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def docs_page(description: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI description."""
    return _template().render(description)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("midstream.gateway", "http"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"prose": _prose, "type": _type}
    return environment.get_template("docs_page.html.jinja")


def _prose(text: str) -> Markup:
    """Return text in which backquotes mark code and empty lines separate paragraphs."""
    parts = str(escape(text)).split("`")
    marked = [f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)]
    return Markup("".join(marked).replace("\n\n", "</p><p>"))


def _type(schema: Mapping[str, Any]) -> Markup:
    """Return the type of a schema in words; objects are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return Markup(" or ").join(dict.fromkeys(map(_type, schema[union])))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return Markup(" or ").join(Markup("<code>{}</code>").format(repr(value)) for value in values)
    kind = schema.get("type", "any")
    if kind == "array":
        return Markup("list of {}").format(_type(schema.get("items", {})))
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)
