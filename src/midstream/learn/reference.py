"""Reference policies: a model without its adapter, or the policy with other weights in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from midstream.engines.torch.decoder import Decoder
from midstream.learn.learner import Reference
from midstream.learn.log_probs import TokenSequence, score
from midstream.learn.weights import Weights


def base_reference(decoder: Decoder) -> Reference:
    """`decoder` with its adapter off."""

    def reference(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad():
            return score(decoder, sequences, adapter=False).log_probs

    return reference


def swapped_reference(decoder: Decoder, weights: Weights, values: Mapping[str, Tensor]) -> Reference:
    """`decoder` with `values` in place of its trainable weights."""

    def reference(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad(), weights.swapped(values):
            return score(decoder, sequences).log_probs

    return reference
