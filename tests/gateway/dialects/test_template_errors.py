"""A chat template may reject a reply. Then its tokens cannot be extended, and the branch says why."""

from __future__ import annotations

from pathlib import Path

from tests.gateway.served import HELLO, Served

from midstream.engines.chat import load_tokenizer
from midstream.engines.scripted import ScriptedEngine

STRICT = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' and m.content != m.content | trim %}{{ raise_exception('loose ends') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Rejects replies that begin or end in white space."""


def test_a_reply_that_the_template_rejects_starts_a_counted_branch(tiny_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer._tokenizer.chat_template = STRICT
    served = Served(ScriptedEngine(tokenizer, [" loose ", "neat", "done"]), tokenizer, tmp_path / "store.sqlite")
    try:
        opened = served.open()
        messages = opened.say(HELLO)
        # A client that strips the reply sends one that the template accepts.
        messages[-1] = {"role": "assistant", "content": "loose"}
        messages = opened.say([*messages, {"role": "user", "content": "And?"}])
        opened.say([*messages, {"role": "user", "content": "And?"}])
        first, second, third = opened.steps
        assert (second.parent, second.branch_reason) == (None, "template")
        assert second.prompt_ids == tokenizer.render(second.messages)
        assert first.response_ids != second.prompt_ids[len(first.prompt_ids) :][: len(first.response_ids)]
        assert (third.parent, third.branch_reason) == (1, "")
        assert served.metric('midstream_branches_total{cause="template"}') == 1
    finally:
        served.stop()
