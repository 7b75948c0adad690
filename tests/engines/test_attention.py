"""Sequences that share a beginning share its computation, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.engines.torch import attention
from midstream.engines.torch.attention import WHOLE, merge_prefixes

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_paths_spell_their_sequences_and_every_distinct_prefix_is_one_token(sequences: list[list[int]]) -> None:
    tree = merge_prefixes(sequences)
    tokens, positions = tree.tokens.tolist(), tree.positions.tolist()
    for sequence, path in zip(sequences, tree.paths, strict=True):
        assert [tokens[node] for node in path] == sequence
        assert [positions[node] for node in path] == list(range(len(sequence)))
    prefixes = {tuple(sequence[:length]) for sequence in sequences for length in range(1, len(sequence) + 1)}
    assert tree.size == len(prefixes)
    assert len(tokens) % WHOLE == 0 and len(tokens) - tree.size < WHOLE
    spelled = {tuple(tokens[n] for n in path[:length]) for path in tree.paths for length in range(1, len(path) + 1)}
    assert spelled == prefixes


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_every_token_is_in_exactly_one_chain_and_sees_exactly_what_comes_before_it(sequences: list[list[int]]) -> None:
    tree = merge_prefixes(sequences)
    before: dict[int, list[int]] = {}
    for path in tree.paths:
        for place, node in enumerate(path):
            before.setdefault(node, path[: place + 1])
    queried: list[int] = []
    for path, start in tree.chains:
        assert 0 <= start < len(path)
        queried += path[start:]
        for place in range(start, len(path)):
            assert path[: place + 1] == before[path[place]]
    assert sorted(queried) == list(range(tree.size))


def test_a_group_of_answers_to_one_prompt_pays_for_the_prompt_once() -> None:
    prompt = list(range(50))
    tree = merge_prefixes([[*prompt, 100 + answer, 200 + answer] for answer in range(8)])
    assert tree.size == 50 + 8 * 2


def test_a_long_chain_is_computed_in_pieces_to_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    long = list(range(150))
    sequences = [long, [*long[:90], *range(200, 250)], [7, 8, 9]]

    def run() -> list[torch.Tensor]:
        tree = attention.merge_prefixes(sequences)
        generator = torch.Generator().manual_seed(1)
        n = len(tree.tokens)
        q, k, v = (torch.randn(n, heads, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))
        out = attention.TreeAttention(tree, 2, torch.float32)(0, q, k, v)[: tree.size]
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]

    whole = run()
    monkeypatch.setattr(attention, "LONG", 1000)
    monkeypatch.setattr(attention, "PIECE", 16)
    computed: list[int] = []
    again = attention.checkpoint

    def counted(*given: Any, **settings: Any) -> Any:
        computed.append(1)
        return again(*given, **settings)

    monkeypatch.setattr(attention, "checkpoint", counted)
    for one, other in zip(whole, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(computed) > 5
