"""Halves of a pass, and unrelated sequences that make them as large as the whole."""

from __future__ import annotations

import pytest
import torch
from tests.row_dependent import row_dependent_products

from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.self_check.noise import noise_floor
from midstream.learn.self_check.recut import company, halves, size_of

SEQUENCES = [TokenSequence((5, 6, 7), (n, n + 1, n + 2, 9), 0.5) for n in range(20, 40)]


@pytest.mark.parametrize("before", [False, True])
def test_halves_hold_every_item_once_and_are_as_large_as_their_pass(make_policy, before: bool) -> None:
    decoder = make_policy().decoder
    parts = list(halves(SEQUENCES, 50, lambda s: s, decoder, before=before))
    assert sorted(s.response_ids for half, _ in parts for s in half) == [s.response_ids for s in SEQUENCES]
    for (one, with_one), (other, with_other) in zip(parts[::2], parts[1::2], strict=True):
        size = size_of([*one, *other])
        assert size_of([*one, *with_one]) == size_of([*other, *with_other]) == size and size.tokens <= 50


def test_what_only_the_other_half_predicts_is_predicted_of_prompts(make_policy) -> None:
    decoder = make_policy().decoder
    first = TokenSequence((5, 6, 7), (20, 21, 22))
    second = TokenSequence((5, 6, 7, 20, 21, 22, 8, 9), (30, 31))
    (_, without), (_, alone) = halves([first, second], 4096, lambda s: s, decoder, before=False)
    assert size_of([first, *without]) == size_of([second, *alone]) == size_of([first, second])


def test_what_is_longer_than_the_context_is_cut(make_policy) -> None:
    decoder = make_policy().decoder
    whole = size_of([TokenSequence((5,), tuple(range(10, 200)))])
    decoder.context_length = 64
    others = company(SEQUENCES[:1], whole, decoder, before=False)
    assert len(others) > 1 and all(len(s.prompt_ids + s.response_ids) <= 64 for s in others)
    assert size_of([SEQUENCES[0], *others]).tokens == whole.tokens


def test_passes_with_as_many_rows_agree_where_rows_depend_on_their_number(make_policy) -> None:
    decoder = make_policy().decoder
    with row_dependent_products(0.002):
        together = score(decoder, SEQUENCES).log_probs.detach().view(len(SEQUENCES), -1)
        for half, others in halves(SEQUENCES, 4096, lambda s: s, decoder, before=False):
            found = score(decoder, [*half, *others]).log_probs.detach()[: 4 * len(half)].view(len(half), -1)
            there = together[[SEQUENCES.index(s) for s in half]]
            torch.testing.assert_close(found, there, atol=1e-4, rtol=0)
        assert noise_floor(decoder, SEQUENCES).rms > 0.01


def test_where_nothing_differs_a_few_sequences_are_enough_for_the_floor(make_policy, monkeypatch) -> None:
    decoder = make_policy().decoder
    passes: list[int] = []
    forward = type(decoder).forward
    monkeypatch.setattr(type(decoder), "forward", lambda *given, **named: passes.append(1) or forward(*given, **named))
    noise = noise_floor(decoder, SEQUENCES)
    assert noise.rms == 0 and noise.limits(12) == (0.001, 0.001)
    assert len(passes) < 3 * 12
