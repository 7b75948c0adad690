"""Conversations are encoded once; continuations are appended, never encoded again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.errors import ModelError
from midstream.engines.chat import load_tokenizer

USER = {"role": "user", "content": "What is 23 times 7?"}


def test_an_extension_is_the_template_text_after_the_reply(tiny_tokenizer) -> None:
    tok = tiny_tokenizer
    new = [{"role": "tool", "content": "161"}, {"role": "user", "content": "So?"}]
    whole = tok.template([USER, {"role": "assistant", "content": "161!"}, *new], open_reply=True)
    for reply_ids in (tok.encode("161!"), (*tok.encode("161!"), min(tok.end_ids))):
        delta = tok.extension([USER], "161!", reply_ids, new)
        assert tok.decode((*tok.render([USER]), *reply_ids, *delta)) == whole


@settings(max_examples=60, deadline=None)
@given(reply=st.text(min_size=1, max_size=12), observation=st.text(max_size=12))
def test_no_text_moves_the_boundary_after_a_reply(tiny_tokenizer, reply: str, observation: str) -> None:
    tok = tiny_tokenizer
    ids = tok.encode(reply)
    delta = tok.extension([USER], tok.text_of(ids), ids, [{"role": "user", "content": observation}])
    if delta is None:
        return
    assert tok.decode(delta).startswith("<|im_end|>\n<|im_start|>user\n")
    assert tok.decode(delta).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_rewrites_history_has_no_extension(tiny_tokenizer, tiny_path: Path) -> None:
    tok = load_tokenizer(tiny_path)
    tok._tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert tok.extension([USER], "plain", tok.encode("plain"), [USER]) is not None
    thought = "<think>hm</think>161"
    assert tok.extension([USER], thought, tok.encode(thought), [USER]) is None


def test_a_template_that_rejects_the_sampled_reply_has_no_extension(tiny_tokenizer, tiny_path: Path) -> None:
    tok = load_tokenizer(tiny_path)
    tok._tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m.role == 'assistant' and m.content != m.content | trim %}{{ raise_exception('loose ends') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert tok.extension([USER], "161", tok.encode("161"), [USER]) is not None
    assert tok.extension([USER], " 161", tok.encode(" 161"), [USER]) is None


def test_text_is_decoded_unchanged(tiny_tokenizer) -> None:
    text = 'São Tomé 🙂 {"a": [1, 2]}\n\n\t<think>'
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


def test_a_missing_tokenizer_or_template_is_an_error(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_path / name).read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(tmp_path)
