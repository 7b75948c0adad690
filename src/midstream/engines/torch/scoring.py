"""Log-probabilities of given tokens by a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder

_CHUNK = 128
"""Tokens whose logits are in memory at one time."""


@torch.no_grad()
def log_probs_of(decoder: Decoder, ids: Sequence[int], *, adapter: bool = True) -> tuple[float, ...]:
    """Return log p of each of `ids` but the first, at temperature 1."""
    tree = merge_prefixes([tuple(ids)], decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    hidden = decoder(tree.tokens, tree.positions, attend, adapter=adapter)
    path = torch.tensor(tree.paths[0], device=decoder.device)
    before, targets = hidden.index_select(0, path[:-1]), tree.tokens[path[1:]]
    found: list[float] = []
    for start in range(0, len(before), _CHUNK):
        part = slice(start, start + _CHUNK)
        log_probs = torch.log_softmax(decoder.logits(before[part]), -1, dtype=torch.float32)
        found += log_probs.gather(-1, targets[part, None])[:, 0].tolist()
    return tuple(found)
