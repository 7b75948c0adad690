"""`/docs`: the OpenAPI description as one page of HTML that needs nothing else, neither scripts nor other servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Schema = Mapping[str, Any]

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { border-bottom: 1px solid #ccc; margin-top: 2.5rem }
summary { cursor: pointer; padding: .25rem 0 }
code, .method { font: 13px ui-monospace, monospace }
.method { display: inline-block; min-width: 3.5rem; font-weight: bold }
table { border-collapse: collapse; margin: .5rem 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #eee }
.note { color: #666 }
"""


def docs_page(description: Schema) -> str:
    """The page of an OpenAPI description."""
    info = description["info"]
    body = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
        '<p><a href="openapi.json">openapi.json</a> has the same for programs.</p>',
    ]
    for tag in description["tags"]:
        body += [f"<h2>{escape(tag['name'])}</h2>", f"<p>{_prose(tag['description'])}</p>"]
        for path, operations in description["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    body += _operation(method, path, operation)
    body.append("<h2>Objects</h2>")
    for name, schema in sorted(description["components"]["schemas"].items()):
        body.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>')
        body += _fields(schema)
    head = f'<meta charset="utf-8"><title>{escape(info["title"])}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def _operation(method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f'<details><summary><span class="method">{escape(method.upper())}</span> <code>{escape(path)}</code> '
    yield f"{escape(operation['summary'])}</summary><p>{_prose(operation.get('description', ''))}</p>"
    rows = [
        _row(parameter["name"], parameter["schema"], parameter.get("description", ""), parameter.get("required", False))
        for parameter in operation.get("parameters", ())
    ]
    if rows:
        yield f"<table>{''.join(rows)}</table>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield f"<p>Body: {_type(content['schema'])}</p>"
    yield "</details>"


def _fields(schema: Schema) -> Iterator[str]:
    yield f"<p>{_prose(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    rows = [
        _row(name, field, field.get("description", ""), name in required)
        for name, field in schema.get("properties", {}).items()
    ]
    if rows:
        yield f"<table><tr><th>field</th><th>type</th><th></th></tr>{''.join(rows)}</table>"
    elif "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"


def _row(name: str, schema: Schema, description: str, required: bool) -> str:
    note = '<span class="note">required.</span> ' if required else ""
    return f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}</td><td>{note}{_prose(description)}</td></tr>"


def _type(schema: Schema) -> str:
    """A type in words, objects as links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for joined in ("anyOf", "oneOf", "allOf"):
        if joined in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[joined])))
    if "const" in schema:
        return f"<code>{escape(repr(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _prose(text: str) -> str:
    """Text in which backquotes mark code."""
    parts = escape(text).split("`")
    marked = [f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)]
    return "".join(marked).replace("\n\n", "</p><p>")
