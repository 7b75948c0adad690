"""Untrusted chat templates are bounded in time and output, and render like transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from midstream.core.errors import ModelError
from midstream.engines.chat import load_tokenizer
from midstream.engines.formats import bounded
from midstream.engines.formats.template import TooMuch, render

ASKED = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "TIME_S", 0.3)
    monkeypatch.setattr(bounded, "MOST", 1 << 21)


@pytest.mark.parametrize(
    "hostile",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999)|map('string')|list %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{% set a = m(n - 1) %}{% set b = m(n - 1) %}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% for x in [1, 1] recursive %}{{ loop([1, 1]) if loop.depth < 40 }}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s|tojson }}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s ~ 'a' }}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ '%s' % n.s }}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
        "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set s = 'a' * 60000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ ('a' * 60000000).replace('a', 'b' * 60000000) }}",
        "{{ messages|tojson(indent=1000000000) }}",
        "{{ [1]|slice(1000000000)|list }}",
        "{{ [1]|batch(1000000000, 0)|list }}",
    ],
)
def test_an_endless_template_is_stopped(hostile: str) -> None:
    with pytest.raises(TooMuch, match="the model's chat template"):
        render(hostile, ASKED, None, {}, open_reply=True)


@pytest.mark.timeout(120)
def test_a_model_with_such_a_template_is_refused_when_it_is_loaded(tiny_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_path, folder)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(endless)
    with pytest.raises(ModelError, match=r"the chat template of '.*hostile' cannot be used: .* took longer than"):
        load_tokenizer(folder)


ORDINARY = [
    "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m.content | trim }}\n{% endfor %}",
    "{%- for m in messages if m.role == 'user' -%}{{ m['content'] ~ loop.revindex }}{%- else -%}none{%- endfor -%}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(3) %}x{% endcall -%}",
    "{% set n = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set n.found = true %}"
    "{% continue %}{% endif %}{% break %}{% endfor %}{{ n.found }}",
    "{{ tools | tojson(indent=2) }}{{ tools[0].function | tojson }}{{ messages | length }}{{ messages[::-1] }}",
    "{{ '%s is %05.2f' % ('x', 1.5) }}{{ '{}-{:>4}'.format('a', 7) }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ [1] + [2] }}",
    "{% generation %}{{ messages[1].content }}{% endgeneration %}{{ bos_token if add_generation_prompt }}",
    "{% for k, v in tools[0].function.items() recursive %}{{ k }}{% endfor %}{{ 'a,b'.split(',') | join('|') }}",
    "{% set text %}{{ messages[0].content }}!{% endset %}{{ text.replace('l', 'L') | upper }}{{ text | indent(2) }}",
    "{{ undefined_thing is defined }}{{ dict(a=1) }}{{ strftime_now('%Y')[:2] }}{{ cycler('a').next() }}",
]


@pytest.mark.parametrize("source", ORDINARY)
def test_an_ordinary_template_renders_like_transformers(source: str) -> None:
    arguments: Any = {"tools": [TOOL], "add_generation_prompt": True, "bos_token": "<s>"}
    expected = render_jinja_template([ASKED], chat_template=source, **arguments)[0][0]
    assert render(source, ASKED, [TOOL], {"bos_token": "<s>"}, open_reply=True) == expected


def test_a_long_conversation_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    source = "{% for m in messages %}{% if loop.index0 < messages|length %}{{ m.content ~ '' }}{% endif %}{% endfor %}"
    long = [{"role": "user", "content": json.dumps(list(range(200)))}] * 1000
    assert len(render(source, long, None, {}, open_reply=True)) == 1000 * len(long[0]["content"])
