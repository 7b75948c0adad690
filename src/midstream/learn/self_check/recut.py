"""Cuts turns into other passes with the same number of rows.

Where a row of a product depends on the number of rows, two cuts of a batch differ by rounding that may be as large as a
fault. Passes with equal numbers of rows do not: half of a pass's sequences, filled up with unrelated sequences, must
give the same results as in the whole pass. Comparing it with another filling, at other positions, measures the
remaining difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from midstream.engines.torch.attention import merge_prefixes
from midstream.learn.data.packing import pack_sequences
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.model.policy_model import PolicyModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PassSize:
    """Number of distinct tokens that a pass computes, and that it predicts."""

    tokens: int
    predicted: int


def size_of(sequences: Sequence[TokenSequence]) -> PassSize:
    """Return the size of a pass of `sequences`."""
    tree = merge_prefixes([s.prompt_ids + s.response_ids for s in sequences])
    predicted = {
        (node, s.distribution)
        for s, path in zip(sequences, tree.paths, strict=True)
        for node in path[len(s.prompt_ids) :]
    }
    return PassSize(tree.size, len(predicted))


def halves(
    items: Sequence[T], max_tokens: int, sequence: Callable[[T], TokenSequence], decoder: PolicyModel, *, before: bool
) -> Iterator[tuple[list[T], list[TokenSequence]]]:
    """Yield two halves of each pass of at most `max_tokens`: every other item, with sequences that fill it up. Items
    that share a prefix are neighbours, so most are separated."""
    for pack in pack_sequences(items, max_tokens, sequence):
        size = size_of([sequence(item) for item in pack])
        for half in (pack[0::2], pack[1::2]):
            if half:
                yield half, company([sequence(item) for item in half], size, decoder, before=before)


def company(
    sequences: Sequence[TokenSequence], size: PassSize, decoder: PolicyModel, *, before: bool
) -> list[TokenSequence]:
    """Return sequences that fill a pass of `sequences` up to `size`. They share at most the first token with those and
    each other. If `predicted` lacks more than `tokens`, parts of prompts are predicted too. In a pass they come
    `before` the others, or after them."""
    adapter = sequences[0].adapter
    own, vocabulary = size_of(sequences), decoder.vocabulary_size
    tokens, predicted = size.tokens - own.tokens, size.predicted - own.predicted
    first, *_ = sequences[0].prompt_ids + sequences[0].response_ids
    taken = {(s.prompt_ids + s.response_ids)[1:2] for s in sequences}
    every = range(vocabulary) if before else range(vocabulary - 1, -1, -1)
    second = (token for token in every if (token,) not in taken)
    found: list[TokenSequence] = []
    for s in sequences:
        wanted = min(predicted - tokens, len(s.prompt_ids) - 1)
        if wanted > 0:
            more = TokenSequence(s.prompt_ids[:-wanted], s.prompt_ids[-wanted:], s.temperature, adapter=adapter)
            gained = size_of([*sequences, *found, more]).predicted - size_of([*sequences, *found]).predicted
            found += [more] if gained else []
            predicted -= gained
    while tokens > 0:
        count = min(tokens, decoder.context_length - 1)
        response = min(count, max(1, round(predicted * count / tokens)))
        # Any tokens will do; these are spread over the vocabulary.
        ids = (next(second), *((7919 * (n + tokens) + before) % vocabulary for n in range(1, count)))
        prompt = (first, *ids[: count - response])
        found.append(TokenSequence(prompt, ids[count - response :], sequences[0].temperature, adapter=adapter))
        tokens, predicted = tokens - count, predicted - response
    return found
