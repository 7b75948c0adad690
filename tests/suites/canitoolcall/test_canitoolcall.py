"""Every chat format against the fixtures of `canitoolcall`: raw replies of real models, and how they should be parsed.

https://pypi.org/project/canitoolcall/. The tokenizers of the fixtures are not in the package, so streams are cut by
characters: finer than any token.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from canitoolcall.fixtures import load_fixtures
from canitoolcall.pytest_plugin import assert_conforms, assert_equivalent, family_for
from canitoolcall.results import ParsedToolCall, ParseResult
from tests.suites.canitoolcall.differences import DIFFERENCES

from midstream.engines.formats import ChatFormat, Reply, format_of
from midstream.engines.formats.recognition import FORMATS
from midstream.engines.formats.reply import joined

pytestmark = pytest.mark.suites

_FORMAT_OF_FAMILY = {
    "deepseek": "deepseek",
    "gemma4": "gemma4",
    "glm": "glm4",
    "gpt-oss": "harmony",
    "kimi": "kimi_k2",
    "mistral": "mistral",
    "qwen3-hermes": "hermes",
    "qwen3-xml": "qwen3_coder",
}
_NOT_SUPPORTED = ("DeepSeek-V3.2", "DeepSeek-V4", "Kimi-K3")
"""Models whose templates are refused by name."""


def _format_of(fixture: Any) -> ChatFormat:
    name = _FORMAT_OF_FAMILY.get(fixture.family) or ("llama4" if "Llama-4" in fixture.reference_model else "llama3")
    template = "{# <think> #}" if "x-think-text" in fixture.tags else ""
    begin, _ = FORMATS[name].think_tags(template, {})
    return format_of(template, {begin.strip(): 1}, name)


def _opening(fixture: Any) -> str:
    """The end of the prompt that the reply continues."""
    if fixture.generation_prompt is not None:
        return fixture.generation_prompt
    models = {one.repo: one.default_generation_prompt for one in family_for(fixture).reference_models}
    return models.get(fixture.reference_model) or ""


def _result(reply: Reply) -> ParseResult:
    calls = [ParsedToolCall(name=call.name, arguments_raw=call.arguments) for call in reply.tool_calls]
    return ParseResult(
        content=reply.content or None, reasoning_content=reply.reasoning or None, tool_calls=tuple(calls)
    )


def _claimed() -> list[Any]:
    fixtures = (one for one in load_fixtures() if not any(name in one.reference_model for name in _NOT_SUPPORTED))
    return [
        pytest.param(
            one,
            id=one.id,
            marks=[pytest.mark.xfail(strict=True, reason=DIFFERENCES[one.id])] if one.id in DIFFERENCES else [],
        )
        for one in fixtures
    ]


@pytest.mark.parametrize("fixture", _claimed())
def test_a_reply_is_parsed_as_the_suite_expects(fixture: Any) -> None:
    reply = _format_of(fixture).read(fixture.raw_output, fixture.tools, _opening(fixture))
    assert_conforms(fixture, _result(reply), soft=True)


@pytest.mark.parametrize("fixture", [param.values[0] for param in _claimed()], ids=lambda fixture: fixture.id)
def test_a_stream_is_parsed_like_the_whole(fixture: Any) -> None:
    chat_format, text = _format_of(fixture), fixture.raw_output
    whole = chat_format.read(text, fixture.tools, _opening(fixture))
    for seed in range(6):
        longest = 1 if seed == 0 else 12
        parser, deltas, at, rng = chat_format.parser(fixture.tools, _opening(fixture)), [], 0, random.Random(seed)
        while at < len(text):
            size = rng.randint(1, longest)
            deltas += parser.feed(text[at : at + size])
            at += size
        streamed = joined([*deltas, *parser.close()])
        assert streamed == whole
        assert_equivalent(_result(whole), _result(streamed))


def test_the_differences_are_those_of_fixtures_that_exist() -> None:
    assert set(DIFFERENCES) <= {param.values[0].id for param in _claimed()}
