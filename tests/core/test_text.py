"""External text becomes valid Unicode on input and is escaped for display."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core.text import cleaned, cleaned_json, visible

ANY = st.text(st.characters())  # surrogates and controls included


@given(ANY)
def test_cleaned_text_is_encodable_and_cleaning_is_idempotent(text: str) -> None:
    once = cleaned(text)
    once.encode()
    assert cleaned(once) == once
    assert all(mine == "\ufffd" or mine in text or ord(mine) > 0xFFFF for mine in once)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("plain", "plain"),
        ("é🙂", "é🙂"),
        ("a\ud83d", "a\ufffd"),
        ("\ud83d\ude42", "🙂"),
        ("\ude42\ud83d", "\ufffd\ufffd"),
    ],
)
def test_surrogates_are_joined_or_replaced(text: str, whole: str) -> None:
    assert cleaned(text) == whole
    assert cleaned_json({text: [text, {"a": text}, 1, None]}) == {whole: [whole, {"a": whole}, 1, None]}


@given(ANY)
def test_visible_text_has_no_control_character_and_is_encodable(text: str) -> None:
    once = visible(text)
    once.encode()
    assert visible(once) == once
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in once)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("a\r\nb\tc\n", "a\nb\tc\n"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202ecba", "abc\\u202ecba"),
        ("\ud83d", "\\ud83d"),
        ("São 🙂 東京", "São 🙂 東京"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown
