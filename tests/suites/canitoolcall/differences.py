"""Fixtures whose replies are parsed differently here, with the reasons."""

_SPACES = "white space on both sides of a call is how calls are written: of what stands around them one gap is kept"
_CUT = "a call that is cut off stays content, word for word, and is counted as malformed: nothing sampled is hidden"
_UNCLOSED = (
    "a value without its end marker is a malformed call, and counted: the parser repairs nothing that is trained on"
)
_UNDECLARED = "a call of a built-in tool that nobody declared stays content, and is counted; the fixture drops it"
_NOISE = "text between the markers of a section is content; the fixture drops it"
_DRAFT = "a call in a thought that has not ended is part of the thought, where models draft calls"

DIFFERENCES: dict[str, str] = {
    "gemma4/sglang-text-around-call": _SPACES,
    "kimi/k2i-vllm-content-after-tool-section": _SPACES,
    "gemma4/truncated-second-parallel-call": _CUT,
    "gpt-oss/harmony-truncated-in-header": _CUT,
    "mistral/v13think-stop-at-open-marker": _CUT,
    "qwen3-hermes/truncated-second-parallel-call": _CUT,
    "qwen3-xml/q38-truncated-at-tool-call-open": _CUT,
    "glm/glm47-missing-last-close-arg-value": _UNCLOSED,
    "qwen3-xml/bug-missing-close-parameter-before-function": _UNCLOSED,
    "qwen3-xml/vllm-coder-missing-close-parameter": _UNCLOSED,
    "gpt-oss/llamacpp-builtin-python-recipient": _UNDECLARED,
    "kimi/k2i-vllm-noise-between-markers": _NOISE,
    "qwen3-xml/llamacpp-q35-call-inside-think": _DRAFT,
}
