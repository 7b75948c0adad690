"""Input masking: hides the configured share, reproducibly, and only for the configured tools."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midstream.core.errors import ConfigError
from midstream.core.types import ToolCall
from midstream.tools import Toolbox, mask_retrieved_tokens, tool

FACT = "The population of Peru is 32162184, and its capital is Lima."


@tool
def look_up(query: str) -> str:
    """Find a fact."""
    return FACT


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def called(mask: dict[str, float], mask_seed: int | None, name: str = "look_up", **arguments: object) -> ToolCall:
    session = Toolbox([look_up, add], mask=mask).session(mask_seed)
    return asyncio.run(session.call(name, arguments or {"query": "Peru"}))


def test_a_share_of_the_words_is_masked_in_place() -> None:
    masked = mask_retrieved_tokens(FACT)
    before, after = FACT.split(), masked.split()
    assert len(after) == len(before) == 11
    assert after.count("[MASK]") == 3  # int(11 * 0.3)
    assert all(new in (old, "[MASK]") for old, new in zip(before, after, strict=True))


@example("\ud800", 0.5, 0)
@given(st.text(st.characters(exclude_characters="[")), st.floats(0, 1), st.integers(0, 2**62))
def test_the_masked_count_is_rounded_down_and_reproducible(text: str, ratio: float, seed: int) -> None:
    masked, all_of_it = mask_retrieved_tokens(text, ratio, seed=seed), mask_retrieved_tokens(text, 1.0)
    assert masked == mask_retrieved_tokens(text, ratio, seed=seed)
    assert masked.count("[MASK]") == int(all_of_it.count("[MASK]") * ratio)
    assert all_of_it.replace("[MASK]", "").strip() == "" and mask_retrieved_tokens(text, 0.0) == text


def test_another_seed_masks_other_words() -> None:
    assert len({mask_retrieved_tokens(FACT, seed=seed) for seed in range(20)}) > 10


def test_text_without_spaces_is_masked_by_character_and_space_is_kept() -> None:
    text = "秘鲁的首都\n是\t利马 Lima"  # eight characters and a word
    masked = mask_retrieved_tokens(text, 0.5)
    assert masked.count("[MASK]") == 4
    assert [c for c in masked if c.isspace()] == ["\n", "\t", " "]


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_an_invalid_share_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio is a share from 0 to 1"):
        mask_retrieved_tokens(FACT, ratio)
    with pytest.raises(ConfigError, match="'look_up' to mask is from 0 to 1"):
        Toolbox([look_up], mask={"look_up": ratio})


def test_a_session_with_a_seed_masks_results_and_keeps_the_original() -> None:
    call = called({"look_up": 0.3}, 5)
    assert (call.ok, call.result.split().count("[MASK]"), call.unmasked) == (True, 3, FACT)
    assert call.result == called({"look_up": 0.3}, 5).result != called({"look_up": 0.3}, 6).result


@pytest.mark.parametrize(
    ("mask", "seed"), [({"look_up": 0.3}, None), ({"add": 1.0}, 5), ({"look_up": 0.0}, 5), ({}, 5)]
)
def test_nothing_is_masked_without_a_seed_or_for_other_tools(mask: dict[str, float], seed: int | None) -> None:
    call = called(mask, seed)
    assert (call.result, call.unmasked) == (FACT, "")


def test_error_results_are_not_masked() -> None:
    call = called({"add": 1.0}, 5, "add", a="one", b=2)
    assert call.error_kind == "invalid_arguments" and "[MASK]" not in call.result and call.unmasked == ""


def test_masking_an_unknown_tool_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'lok_up' are to be masked(?s:.*)did you mean 'look_up'"):
        Toolbox([look_up], mask={"lok_up": 0.3})
