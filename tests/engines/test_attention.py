"""Sequences with a common prefix share its computation, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.engines.torch import attention, long_attention
from midstream.engines.torch.attention import ANY, WHOLE, merge_prefixes
from midstream.engines.torch.numerics import layer_like, settle
from midstream.engines.torch.products import Rows

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(sequences)
def test_paths_reproduce_their_sequences_and_share_every_prefix(sequences: list[list[int]]) -> None:
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
def test_every_token_is_in_one_chain_and_attends_to_its_prefix(sequences: list[list[int]]) -> None:
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


def test_the_prompt_of_a_group_is_computed_once() -> None:
    prompt = list(range(50))
    tree = merge_prefixes([[*prompt, 100 + answer, 200 + answer] for answer in range(8)])
    assert tree.size == 50 + 8 * 2


PREFIX = list(range(150))
LONG_AND_SHORT = [PREFIX, [*PREFIX[:90], *range(200, 250)], [7, 8, 9]]


def attended(dtype: torch.dtype = torch.float32, queries: Rows = ANY) -> list[torch.Tensor]:
    """Attention output of `LONG_AND_SHORT`, and the gradients of queries, keys and values."""
    tree = merge_prefixes(LONG_AND_SHORT)
    generator = torch.Generator().manual_seed(1)
    n = len(tree.tokens)
    q, k, v = (torch.randn(n, heads, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, 2, 2))
    out = attention.TreeAttention(tree, 2, dtype, queries=queries)(0, q, k, v)[: tree.size]
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", 1000)
    monkeypatch.setattr(attention, "PIECE", 16)
    monkeypatch.setattr(long_attention, "WEIGHTS", 1)
    monkeypatch.setattr(long_attention, "QUERIES", (16, 64))


def long_chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List that records the queries of each long chain passed to `long_attention`."""
    given: list[int] = []
    compute = attention.long_attention

    def counted(q: torch.Tensor, *others: Any) -> torch.Tensor:
        given.append(len(q))
        return compute(q, *others)

    monkeypatch.setattr(attention, "long_attention", counted)
    return given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_chain_in_pieces_gives_identical_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    numerics = settle(layer_like(dtype))
    whole = attended(dtype, numerics.queries)
    request.getfixturevalue("small_pieces")
    given = long_chains(monkeypatch)
    out, *gradients = attended(dtype, numerics.queries)
    assert given == [90, 60, 50]
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.equal(out, whole[0]) or numerics.mode == "fast"
    for one, other in zip((out, *gradients), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def test_tokens_without_influence_on_the_loss_have_no_gradient(small_pieces: None) -> None:
    """The backward pass skips only pieces of queries without a gradient."""
    tree = merge_prefixes([PREFIX])
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(len(tree.tokens), heads, 8, generator=generator).requires_grad_() for heads in (4, 2, 2))
    out = attention.TreeAttention(tree, 2, torch.float32)(0, q, k, v)
    out[[40, 100]].square().sum().backward()
    assert q.grad is not None and v.grad is not None
    assert q.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == [40, 100]
    assert v.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == list(range(101))


def test_on_other_devices_pieces_are_computed_one_by_one(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    whole = attended()
    request.getfixturevalue("small_pieces")
    monkeypatch.setattr(attention, "_computes_long", lambda device: False)
    given = long_chains(monkeypatch)
    for one, other in zip(whole, attended(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert given == []
