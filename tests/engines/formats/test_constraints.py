"""A reply constrained to a call parses as one: random tokens are sampled under llguidance and parsed by the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Any

import jsonschema
import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import pytest
from tests.engines.formats.conftest import declared

from midstream.core.errors import Unsupported
from midstream.core.types import Constraint
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.engines.formats import response_constraint
from midstream.engines.formats.gemma4 import Gemma4
from midstream.engines.formats.glm4 import GLM4
from midstream.engines.formats.harmony import Harmony
from midstream.engines.formats.kimi_k2 import KimiK2
from midstream.engines.models import cached

HERMES_TAGS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
DEEPSEEK_TAGS = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
MODELS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "hermes in text": ("qwen2_5", (), False),
    "hermes in added tokens": ("qwen2_5", HERMES_TAGS[:2], False),
    "hermes in special tokens": ("qwen2_5", HERMES_TAGS[:2], True),
    "llama3": ("llama3_1", ("<|python_tag|>", "<|eot_id|>"), True),
    "mistral in a list": ("mistral", ("[TOOL_CALLS]",), True),
    "mistral by name": ("mistral_by_name", ("[TOOL_CALLS]", "[ARGS]"), True),
    "qwen3_coder": ("qwen3_coder", ("<tool_call>", "</tool_call>"), False),
    "deepseek": ("deepseek_v3_1", DEEPSEEK_TAGS, False),
    "glm4 in text": ("glm4_5", (), False),
    "glm4 in tokens": ("glm4_7", GLM4.tags, False),
    "kimi_k2": ("kimi_k2", KimiK2.tags, True),
}


@lru_cache
def _guide(tokenizer: ChatTokenizer) -> Any:
    return llguidance.hf.from_tokenizer(tokenizer._tokenizer)


def matcher(tokenizer: ChatTokenizer, constraint: Constraint) -> Any:
    grammar = llguidance.grammar_from(constraint.kind, constraint.grammar)
    made = llguidance.LLMatcher(_guide(tokenizer), grammar)
    assert not made.is_error(), made.get_error()
    return made


def sample(tokenizer: ChatTokenizer, constraint: Constraint, seed: int, most: int = 400) -> str:
    """Random tokens among those `constraint` allows, to an end token that it allows, after a short thought where the
    model thinks: a random one would not end."""
    guide, state, random = _guide(tokenizer), matcher(tokenizer, constraint), Random(seed)
    begin, end_tag = tokenizer.format.think
    thought = {"no": "", "tag": f"{begin}hm{end_tag}", "opened": f"hm{end_tag}"}[tokenizer.format.facts.thinks]
    if thought and tokenizer.format.name == "harmony":
        thought += "<|start|>assistant"
    ids = list(tokenizer.encode(thought))
    assert state.consume_tokens(ids)
    mask = llguidance.numpy.allocate_token_bitmask(1, guide.vocab_size)
    end = min(tokenizer.end_ids)
    while len(ids) < most:
        llguidance.numpy.fill_next_token_bitmask(state, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: guide.vocab_size])
        if end in allowed and (len(allowed) == 1 or random.random() < 0.6):
            return tokenizer.decode(ids)
        token = int(random.choice(allowed))
        if token != end:
            ids.append(token)
            assert state.consume_token(token)
    raise AssertionError(f"no end: {tokenizer.decode(ids)!r}")


def takes(tokenizer: ChatTokenizer, constraint: Constraint, text: str) -> bool:
    """Return whether `text` is a complete reply under `constraint`."""
    state, ids = matcher(tokenizer, constraint), list(tokenizer.encode(text))
    return state.validate_tokens(ids) == len(ids) and state.consume_tokens(ids) and state.is_accepting()


def check(tokenizer: ChatTokenizer, tools: list[dict[str, Any]], choice: str, parallel: bool, seed: int) -> int:
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    constraint = tokenizer.format.constraint(tools, choice, parallel)
    assert constraint is not None
    text = sample(tokenizer, constraint, seed)
    reply = tokenizer.format.read(text, tools)
    assert reply.content == "" and reply.tool_calls, text
    for call in reply.tool_calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
        assert choice in ("required", call.name)
    assert parallel or len(reply.tool_calls) == 1
    return len(reply.tool_calls)


@pytest.mark.parametrize("model", MODELS)
def test_random_tokens_under_a_constraint_are_valid_calls(
    model: str, tokenizer_like: Callable[..., ChatTokenizer], tools
) -> None:
    template, tokens, special = MODELS[model]
    tokenizer = tokenizer_like(template, *tokens, special=special)
    several = {check(tokenizer, tools, "required", True, seed) for seed in range(8)}
    assert several != {1}  # several calls are possible, and occur
    for seed in range(4):
        check(tokenizer, tools, "required", False, seed)
        check(tokenizer, tools, "get_weather", False, seed)


FLAT = declared(
    "get_weather",
    {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "exact": {"type": "boolean"},
    },
    ["city"],
)


@pytest.mark.parametrize("special", [False, True])
def test_a_forced_call_in_object_notation_is_valid(special: bool, tokenizer_like: Callable[..., ChatTokenizer]) -> None:
    tokenizer = tokenizer_like("gemma4", *(Gemma4.tags if special else ()), special=special)
    several = {check(tokenizer, [FLAT], "required", True, seed) for seed in range(6)}
    assert several != {1}
    for seed in range(3):
        check(tokenizer, [FLAT], "get_weather", False, seed)


def test_schemas_that_object_notation_cannot_enforce_are_refused(
    tokenizer_like: Callable[..., ChatTokenizer], tools
) -> None:
    with pytest.raises(Unsupported, match=r"parameter move\.to cannot be enforced"):
        tokenizer_like("gemma4").format.constraint(tools, "move", True)
    with pytest.raises(Unsupported, match="Python notation"):
        tokenizer_like("llama4").format.constraint(tools, "required", True)


@pytest.mark.parametrize("special", [False, True])
def test_a_forced_harmony_call_may_follow_an_analysis(
    special: bool, tokenizer_like: Callable[..., ChatTokenizer], tools
) -> None:
    tokenizer = tokenizer_like("gpt_oss", *(Harmony.tags if special else ()), special=special)
    for seed in range(4):
        assert check(tokenizer, tools, "required", True, seed) == 1
    forced, as_json = tokenizer.format.constraint(tools, "required", True), tokenizer.format.answer({"type": "object"})
    assert forced is not None
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}'
    assert takes(tokenizer, forced, call) and takes(tokenizer, forced, thought + call)
    assert not takes(tokenizer, forced, thought) and not takes(tokenizer, forced, "<|channel|>final<|message|>{}")
    assert takes(tokenizer, as_json, thought + '<|channel|>final<|message|>{"a": 1}')
    assert not takes(tokenizer, as_json, '{"a": 1}')


@pytest.mark.skipif(cached("smollm2-135m") is None, reason="SmolLM2 has not been fetched")
def test_smollm2_can_be_constrained_to_a_call(tools) -> None:
    folder = cached("smollm2-135m")
    assert folder is not None
    tokenizer = load_tokenizer(folder)
    for seed in range(3):
        check(tokenizer, tools, "required", False, seed)


def test_a_thinking_model_can_think_before_a_forced_call(tokenizer_like: Callable[..., ChatTokenizer], tools) -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    for tokens in ((), HERMES_TAGS):
        for template, begun in (("qwen3", "<think>\n"), ("qwen3_thinking", "")):
            tokenizer = tokenizer_like(template, *tokens)
            forced = tokenizer.format.constraint(tools, "required", True)
            as_json = tokenizer.format.answer({"type": "object"})
            assert forced is not None
            thought = f"{begun}I could say </thin or\n{{}}.\n</think>\n\n"
            assert takes(tokenizer, forced, thought + call) and takes(tokenizer, as_json, thought + '{"a": 1}')
            assert not takes(tokenizer, forced, thought + "No.") and not takes(tokenizer, forced, thought)
            # A thought opened by the prompt must end first.
            assert takes(tokenizer, forced, call) == takes(tokenizer, as_json, "{}") == bool(begun)


def test_only_required_and_named_tool_choices_constrain_a_reply(tiny_tokenizer: ChatTokenizer, tools) -> None:
    chat_format = tiny_tokenizer.format
    assert chat_format.constraint(tools, "auto", True) is chat_format.constraint(tools, "none", True) is None
    with pytest.raises(Unsupported, match="names 'get_wether'"):
        chat_format.constraint(tools, "get_wether", True)
    with pytest.raises(Unsupported, match="no tools are declared"):
        chat_format.constraint([], "required", True)


def test_a_response_format_is_json_of_its_schema(tiny_tokenizer: ChatTokenizer) -> None:
    chat_format = tiny_tokenizer.format
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    named = response_constraint(
        chat_format, {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    )
    free = response_constraint(chat_format, {"type": "json_object"})
    assert named is not None and free is not None
    assert takes(tiny_tokenizer, named, '{"n": 5}') and not takes(tiny_tokenizer, named, '{"n": "5"}')
    assert takes(tiny_tokenizer, free, '{"any": []}') and not takes(tiny_tokenizer, free, "[]")
    assert response_constraint(chat_format, None) is response_constraint(chat_format, {"type": "text"}) is None
    for wrong in ({"type": "xml"}, {"type": "json_schema"}):
        with pytest.raises(Unsupported, match="response_format"):
            response_constraint(chat_format, wrong)


def test_schemas_that_xml_cannot_enforce_are_refused(tokenizer_like: Callable[..., ChatTokenizer], tools) -> None:
    parameters = {"type": "object", "properties": {"day": {"type": "string", "pattern": "^[0-9]+$"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(Unsupported, match=r"'pattern' of the parameter f\.day"):
        tokenizer_like("qwen3_coder").format.constraint([tool], "required", True)
