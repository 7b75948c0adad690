"""Sequences that share a beginning share its computation, and nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

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
