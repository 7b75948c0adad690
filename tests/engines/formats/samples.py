"""Chat formats by name, and text of calls in them."""

from __future__ import annotations

from pathlib import Path

from midstream.engines.formats import CalledTool, ChatFormat, format_of

TEMPLATES = Path(__file__).parent / "templates"
QWEN2_5, QWEN3, QWEN3_THINKING = (
    (TEMPLATES / f"{name}.jinja").read_text() for name in ("qwen2_5", "qwen3", "qwen3_thinking")
)
ANY = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
PARIS = CalledTool("get_weather", '{"city": "Paris"}')
KIMI_BEGIN, KIMI_ARGUMENTS = "<|tool_calls_section_begin|><|tool_call_begin|>", "<|tool_call_argument_begin|>"
KIMI_END = "<|tool_call_end|><|tool_calls_section_end|>"
HERMES_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def named(name: str, template: str = "") -> ChatFormat:
    return format_of(template, {}, name)


HERMES, LLAMA, MISTRAL, CODER, DEEPSEEK = map(named, ("hermes", "llama3", "mistral", "qwen3_coder", "deepseek"))
GLM, HARMONY, GEMMA, KIMI, LLAMA4 = map(named, ("glm4", "harmony", "gemma4", "kimi_k2", "llama4"))
