"""Recognizes the chat format of a model's template.

A template that writes tool calls is recognized by a probe: a call is rendered through the format and the template, and
the format's parser must read back exactly that call. A template that no format can read is `plain`, which refuses tools
by name; it is never parsed as a similar format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from midstream.core.errors import ConfigError, MidstreamError, nearest
from midstream.core.types import Message, ToolSchema
from midstream.engines.formats.chat_format import ChatFormat
from midstream.engines.formats.deepseek import DeepSeek
from midstream.engines.formats.gemma4 import Gemma4
from midstream.engines.formats.glm4 import GLM4
from midstream.engines.formats.harmony import Harmony
from midstream.engines.formats.hermes import Hermes
from midstream.engines.formats.kimi_k2 import KimiK2
from midstream.engines.formats.llama3 import Llama3
from midstream.engines.formats.llama4 import Llama4
from midstream.engines.formats.mistral import Mistral
from midstream.engines.formats.plain import Plain
from midstream.engines.formats.qwen3_coder import Qwen3Coder
from midstream.engines.formats.template import SPECIAL_TOKENS, Facts, facts_of, render

_PROBED: tuple[type[ChatFormat], ...] = (
    *(Harmony, Gemma4, KimiK2, GLM4, Qwen3Coder, DeepSeek, Mistral, Hermes, Llama3, Llama4),
)
FORMATS: dict[str, type[ChatFormat]] = {one.name: one for one in (*_PROBED, Plain)}
_IN_VOCABULARY: tuple[tuple[type[ChatFormat], tuple[str, ...]], ...] = (
    (KimiK2, KimiK2.tags),
    (GLM4, GLM4.tags),
    (DeepSeek, DeepSeek.tags),
    (Mistral, Mistral.tags[:1]),
    (Hermes, Hermes.tags),
    (Llama3, Llama3.tags),
)
"""Tokens that identify a model's format if its template does not support tools; the first complete set counts."""
_UNSUPPORTED = {
    "｜DSML｜": "DeepSeek V3.2 and later (DSML)",
    "<|open|>": "Kimi K3 (XTML)",
    "<minimax:tool_call>": "MiniMax",
    "]<]minimax[>[": "MiniMax M3",
    "<|tool_call_start|>": "LFM2",
    "<|START_ACTION|>": "Cohere Command",
    "<|tool_call_argument_begin|>": "a form of Kimi's calls",
    "<start_function_call>": "FunctionGemma",
    "<TOOLCALL>": "Nemotron v2",
    "<seed:tool_call>": "Seed-OSS",
    "<|tools_prefix|>": "Apertus",
    "<|tool_call|>": "Granite or Phi",
}
"""Known but unsupported forms of calls, by text in their templates."""

_LEFT_OVER = re.compile(r"zq|tool_?call|invoke|[\]})]")
"""Text that is part of a call, not the end of a turn."""
_CALL = {"zqcity": "it's Paris, 5"}
_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "?",
        "parameters": {
            "type": "object",
            "properties": {"zqcity": {"type": "string", "description": "?"}},
            "required": ["zqcity"],
        },
    },
}


def format_of(template: str, vocabulary: Mapping[str, int], name: str = "") -> ChatFormat:
    """Return the format that `template` writes; `name` overrides it. `why` of the result explains the choice.

    Raises `ConfigError` for an unknown name."""

    by_think: dict[tuple[str, str], Facts] = {}

    def made(chat_format: type[ChatFormat], why: str) -> ChatFormat:
        think = chat_format.think_tags(template, vocabulary)
        if think not in by_think:
            by_think[think] = facts_of(template, vocabulary, think)
        return chat_format(by_think[think], vocabulary, why)

    if name:
        if name not in FORMATS:
            raise ConfigError(f"no tool format '{name}'", nearest(name, FORMATS))
        return made(FORMATS[name], "named in the settings")
    facts = made(Plain, "").facts
    if facts.writes_calls:
        for one in _PROBED:
            probed = made(one, "its parser reads back the calls that the chat template writes")
            if _reads_back(probed):
                return probed
        known = next((family for sign, family in _UNSUPPORTED.items() if sign in template), "")
        example = _written(made(Plain, "")).strip()
        form = f"in the form of {known}, which is not supported" if known else f"in an unknown form: {example[:120]!r}"
        return made(Plain, f"the chat template writes tool calls {form}")
    if facts.declares:
        refusal = f", and {facts.refusal}" if facts.refusal else ""
        return made(Plain, f"the chat template declares tools, but writes no calls of them{refusal}")
    for one, tags in _IN_VOCABULARY:
        if all(tag in vocabulary for tag in tags):
            return made(one, f"the vocabulary has {' and '.join(tags)}")
    return made(Hermes, "neither the chat template nor the vocabulary knows of tools")


def _reads_back(chat_format: ChatFormat) -> bool:
    """Whether the format's parser reads exactly the call that the template writes, with no content before it and
    nothing left over."""
    written = _written(chat_format)
    # A template may omit, in a finished turn, the thought that its prompt started.
    return all(mark in written for mark in chat_format.signature) and any(
        _is_the_call(chat_format, written, opening) for opening in (None, "")
    )


def _is_the_call(chat_format: ChatFormat, written: str, opening: str | None) -> bool:
    parser, before, after, calls = chat_format.parser([_TOOL], opening), "", "", []
    for delta in [*parser.feed(written), *parser.close()]:
        if delta.malformed:
            return False
        if delta.call is not None:
            calls.append((delta.name, json.loads(delta.arguments)))
        elif calls:
            after += delta.content  # the end of the turn
        else:
            before += delta.content
    return calls == [("zqtool", _CALL)] and not before.strip() and not _LEFT_OVER.search(after)


def _written(chat_format: ChatFormat) -> str:
    """Return the turn of a call as the template writes it, from the start of the assistant's turn; "" if rejected."""
    asked: Message = {"role": "user", "content": "zqasked"}
    function = {"name": "zqtool", "arguments": json.dumps(_CALL)}
    calls: list[Message] = [{"id": "abcdefgh1", "type": "function", "function": function}]
    facts = chat_format.facts

    def rendered(*messages: Message, open_reply: bool) -> str:
        taken = chat_format.messages(messages, ())
        declared = [_TOOL] if facts.declares else None
        text = render(facts.source, taken, declared, SPECIAL_TOKENS, open_reply=open_reply)
        return text.rpartition("zqasked")[2]

    try:
        opened = rendered(asked, open_reply=True)
        whole = rendered(asked, {"role": "assistant", "content": "", "tool_calls": calls}, open_reply=False)
    except MidstreamError:
        return ""
    pairs = enumerate(zip(opened, whole, strict=False))
    shared = next((at for at, (one, other) in pairs if one != other), min(len(opened), len(whole)))
    marker = whole.rfind("<", 0, shared)
    return whole[marker if whole.rfind(">", 0, shared) < marker else shared :]  # keeps markers whole
