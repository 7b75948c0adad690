"""Passes hold every item once, stay in their bounds, and compute hardly a token twice."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midstream.engines.torch.attention import merge_prefixes
from midstream.learn.data.packing import FURTHER, ScatterIndex, pack_sequences
from midstream.learn.model.log_probs import TokenSequence

Ids = tuple[int, ...]


def drawn(draw: random.Random, tokens: int) -> Ids:
    return tuple(draw.randrange(50_000) for _ in range(tokens))


def group_of(draw: random.Random, prompt: Ids, size: int, turns: list[int], between: int) -> list[TokenSequence]:
    """Attempts of `turns` sampled tokens each, with what a tool said `between` them."""
    sequences: list[TokenSequence] = []
    for _ in range(size):
        so_far = prompt
        for tokens in turns:
            sequences.append(TokenSequence(so_far, drawn(draw, tokens)))
            so_far += sequences[-1].response_ids + drawn(draw, between)
    return sequences


def tokens_run(sequences: list[TokenSequence]) -> int:
    return len(merge_prefixes([s.prompt_ids + s.response_ids for s in sequences]).tokens)


@pytest.mark.parametrize(
    ("groups", "size", "prompt", "turns", "between"),
    [
        (4, 8, 64, [64], 0),
        (2, 8, 512, [32], 0),
        (12, 8, 512, [32], 0),
        (8, 8, 256, [32] * 4, 32),
        (10, 16, 32, [16], 0),
        (6, 8, 400, [60, 20, 40], 150),
    ],
)
def test_a_batch_computes_at_most_a_tenth_more_than_its_distinct_tokens(
    groups: int, size: int, prompt: int, turns: list[int], between: int
) -> None:
    draw = random.Random(groups)
    system = drawn(draw, 24)
    sequences = [s for _ in range(groups) for s in group_of(draw, system + drawn(draw, prompt), size, turns, between)]
    draw.shuffle(sequences)
    distinct = merge_prefixes([s.prompt_ids + s.response_ids for s in sequences]).size
    packs = pack_sequences(sequences, 4096, lambda s: s)
    assert sum(map(tokens_run, packs)) <= 1.1 * distinct
    assert len(packs) <= 2 * distinct / 4096 + 1


def test_the_steps_of_a_long_conversation_and_its_other_attempts_are_one_pass() -> None:
    draw = random.Random(1)
    sequences = group_of(draw, drawn(draw, 5000), 3, [30] * 4, 40)
    (pack,) = pack_sequences(sequences, 1024, lambda s: s)
    assert sorted(pack, key=sequences.index) == sequences


def test_long_prompts_that_share_nothing_have_a_pass_each() -> None:
    draw = random.Random(2)
    sequences = [TokenSequence(drawn(draw, 5000), drawn(draw, 30)) for _ in range(3)]
    assert [len(pack) for pack in pack_sequences(sequences, 1024, lambda s: s)] == [1, 1, 1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=8), max_size=12), st.integers(1, 20))
def test_each_item_is_in_one_pass_and_no_pass_is_too_large(ids: list[list[int]], most: int) -> None:
    sequences = [TokenSequence(tuple(own[:1]), tuple(own[1:])) for own in ids]
    packs = pack_sequences(range(len(ids)), most, sequences.__getitem__)
    assert sorted(n for pack in packs for n in pack) == list(range(len(ids)))
    for pack in packs:
        longest = max(len(ids[n]) for n in pack)
        size = merge_prefixes([ids[n] for n in pack]).size
        assert size <= max(most, longest * FURTHER if longest > most else 0) or len(pack) == 1


def test_numbers_come_back_in_the_order_of_the_sequences() -> None:
    assigned = ScatterIndex([TokenSequence((1,), (2, 3)), TokenSequence((1,), (4,)), TokenSequence((1,), (5, 6, 7))])
    assert assigned.in_order() == []
    assigned.add([2, 0], torch.tensor([5.0, 6.0, 7.0, 2.0, 3.0]))
    assigned.add([1], torch.tensor([4.0]))
    assert assigned.in_order() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
