"""Tool declarations and tokenizers for the tests of chat formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from midstream.engines.chat import ChatTokenizer


def declared(name: str, properties: dict[str, Any], required: list[str], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": "?", "parameters": {**parameters, **more}}}


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    unit = {"enum": ["celsius", "fahrenheit"]}
    point = {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    return [
        declared("get_weather", {"city": {"type": "string", "maxLength": 12}, "unit": unit}, ["city"]),
        declared(
            "move",
            {"to": {"$ref": "#/$defs/point"}, "steps": {"type": "integer", "minimum": 0, "maximum": 99}},
            ["to", "steps"],
            **{"$defs": {"point": point}},
        ),
    ]


@pytest.fixture(scope="session")
def tokenizer_like(tiny_path: Path) -> Callable[..., ChatTokenizer]:
    """`tiny`'s tokenizer with one of the templates here, and with tokens added as the template's model has them; `end`
    ends a reply."""

    def make(template: str, *tokens: str, special: bool = False, end: str = "") -> ChatTokenizer:
        from transformers import AddedToken, AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(str(tiny_path))
        tokenizer.chat_template = (Path(__file__).parent / "templates" / f"{template}.jinja").read_text()
        added = [AddedToken(token, special=special, normalized=False) for token in tokens]
        tokenizer.add_tokens(added, special_tokens=special)
        ends = {tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id}
        return ChatTokenizer(tokenizer, frozenset(ends), template)

    return make
