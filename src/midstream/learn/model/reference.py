"""Reference policies: a model without its adapter, or the policy with other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from midstream.learn.model.learner import Reference
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.policy_model import PolicyModel
from midstream.learn.model.weights import Weights


def base_reference(decoder: PolicyModel) -> Reference:
    """Return `decoder` without its adapters as a reference."""

    def reference(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad():
            return score(decoder, sequences, adapter=False).log_probs

    return reference


def swapped_reference(decoder: PolicyModel, weights: Weights, values: Mapping[str, Tensor]) -> Reference:
    """Return `decoder` with `values` as its trainable weights as a reference."""

    def reference(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad(), weights.swapped(values):
            return score(decoder, sequences).log_probs

    return reference
