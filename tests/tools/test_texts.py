"""Texts by file, folder or function, and what is wrong with those that cannot be read."""

import json

import pytest

from midstream.core.errors import ConfigError
from midstream.tasks.shop import price_of
from midstream.tools.search_index import search_documents
from midstream.tools.texts import load_texts

TEXTS = ["one", {"text": "two", "id": "b", "key": "k"}]
WRONG = [{"title": "no text"}]
A_WORD = "one"


def test_texts_of_a_function_of_a_file_and_of_a_folder(tmp_path):
    here = f"{__name__}:TEXTS"
    assert load_texts(here, "search") == [
        {"id": f"{here}:1", "text": "one"},
        {"text": "two", "id": "b", "key": "k"},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two", "id": 7}\n')
    assert [row["id"] for row in load_texts(str(file), "search")] == ["texts.jsonl:1", 7]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("first\nline\n\nsecond")
    assert load_texts(str(tmp_path / "notes"), "search") == [
        {"text": "first line", "id": "a.md#1"},
        {"text": "second", "id": "a.md#2"},
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere.jsonl", "search: cannot read 'nowhere.jsonl'"),
        ("no_such_module:texts", "search: cannot import 'no_such_module:texts'"),
        (f"{__name__}:nothing", "cannot import"),
        (f"{__name__}:A_WORD", "gives a str"),
        (f"{__name__}:WRONG", "search: text 1 is no JSON object with 'text'"),
    ],
)
def test_what_cannot_be_read_names_the_setting(name, problem):
    with pytest.raises(ConfigError, match=problem):
        load_texts(name, "search")


@pytest.mark.parametrize("line", ["text", "[]", json.dumps({"text": 3}), "[" * 3000])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(ConfigError, match="line 2 of"):
        load_texts(str(file), "search")


def test_an_index_of_a_function():
    (found,) = search_documents("midstream.tasks.shop:prices").best("red kites", 1)
    assert found.text == f"The price of red kites is {price_of('red kites')} dollars."
