"""Log-probabilities of chosen tokens and their gradients, without full-vocabulary logits for all tokens at once.

The forward pass keeps only the slope of each token's distribution. The backward pass recomputes logits in chunks only
for a trainable head or an entropy with a gradient. Sequences that share a prefix share its computation (see
`merge_prefixes`), and the gradient through it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midstream.engines.torch import products
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.products import Rows

CHUNK = 128
"""Tokens whose logits are in memory at one time."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and its response. Log-probabilities are computed for `response_ids` at `temperature`."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class States:
    """Decoder states before each response token.

    `hidden` [distinct, d] holds the states that predict a response token, without duplicates; `targets` and
    `temperatures` hold the token and temperature of each. `where` [tokens] maps each response token, sequence after
    sequence, to its state. `computed` counts the distinct tokens computed.
    """

    hidden: Tensor
    targets: Tensor
    temperatures: Tensor
    where: Tensor
    computed: int

    def detached(self) -> States:
        """Return a copy without gradient to the decoder."""
        return replace(self, hidden=self.hidden.detach())

    def by_token(self, values: Tensor) -> Tensor:
        """Expand `values` [distinct] to all response tokens."""
        # index_select, because the multi-threaded backward pass of plain indexing sums in a different order each time.
        return values.index_select(0, self.where)


@dataclass(frozen=True, slots=True)
class Scored:
    """Outputs per response token, sequence after sequence: `log_probs` and `entropy` [tokens] in fp32."""

    log_probs: Tensor
    entropy: Tensor
    states: States

    @property
    def computed(self) -> int:
        """Distinct tokens computed."""
        return self.states.computed


def run(decoder: Decoder, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> States:
    """Run `decoder` over all sequences, computing each shared prefix once."""
    tree = merge_prefixes([s.prompt_ids + s.response_ids for s in sequences], decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    hidden = decoder(tree.tokens, tree.positions, attend, adapter=adapter)
    predictor: dict[tuple[int, float], tuple[int, int]] = {}
    where: list[int] = []
    for sequence, path in zip(sequences, tree.paths, strict=True):
        for position in range(len(sequence.prompt_ids), len(path)):
            key = (path[position], sequence.temperature)
            index, _ = predictor.setdefault(key, (len(predictor), path[position - 1]))
            where.append(index)
    device = decoder.device
    nodes = torch.tensor([node for node, _ in predictor], device=device)
    before = torch.tensor([previous for _, previous in predictor.values()], device=device)
    temperatures = torch.tensor([temperature for _, temperature in predictor], device=device)
    return States(
        hidden.index_select(0, before),
        tree.tokens[nodes],
        temperatures,
        torch.tensor(where, device=device),
        tree.size,
    )


def score(decoder: Decoder, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> Scored:
    """Compute log-probabilities and entropies of all response tokens, computing each shared prefix once."""
    states = run(decoder, sequences, adapter=adapter)
    compute = partial(token_log_probs, targets=states.targets, temperatures=states.temperatures)
    log_probs, entropy = decoder.lm_head(states.hidden, decoder.version, compute)
    return Scored(states.by_token(log_probs), states.by_token(entropy), states)


def token_log_probs(
    hidden: Tensor, head: Tensor, rows: Rows, targets: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log p(target) and the entropy of the full distribution, both [n] in fp32 and differentiable.

    hidden [n, d], head [vocab, d], targets [n], temperatures [n]; p = softmax(hidden headᵀ / temperature). `rows` gives
    the numbers of rows per matrix product.
    """
    log_probs, entropy = _TokenLogProbs.apply(hidden, head, rows, targets, temperatures)  # type: ignore[misc]
    return log_probs, entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, rows: Rows, targets: Tensor, temperatures: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_probs, entropies, slopes = [], [], []
        scaled = bool((temperatures != 1).any())
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            every = _log_softmax(hidden[part], head, rows, temperatures[part] if scaled else None)
            log_probs.append(every.gather(-1, targets[part, None])[:, 0])
            probs = every.exp()
            entropies.append(-torch.bmm(probs[:, None], every[:, :, None])[:, 0, 0])
            if ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]:
                # d log p(t) / d logit = 1[t] - p: p is available now, so the backward pass needs no logits.
                probs.scatter_add_(-1, targets[part, None], probs.new_full((len(probs), 1), -1.0))
                slopes.append(probs.to(hidden.dtype) @ head)
        ctx.scaled, ctx.rows = scaled, rows
        entropy = torch.cat(entropies)
        ctx.save_for_backward(hidden, head, targets, temperatures, entropy, torch.cat(slopes) if slopes else None)
        return torch.cat(log_probs), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets, temperatures, entropy, slopes = ctx.saved_tensors
        grad_log_prob, grad_entropy = grads
        with_entropy = bool(grad_entropy.any())
        if slopes is not None and not with_entropy:
            by = -grad_log_prob / temperatures if ctx.scaled else -grad_log_prob
            return slopes * by[:, None].to(slopes.dtype), None, None, None, None
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            every = _log_softmax(hidden[part], head, ctx.rows, temperatures[part] if ctx.scaled else None)
            # d H / d logit = -p (log p + H); in place, because each pass over the vocabulary is expensive.
            by = grad_log_prob[part, None]
            if with_entropy:
                by = by + grad_entropy[part, None] * (every + entropy[part, None])
            grad = every.exp_().mul_(-by).scatter_add_(-1, targets[part, None], grad_log_prob[part, None])
            if ctx.scaled:
                grad /= temperatures[part, None]
            rounded = grad.to(hidden.dtype)
            grad_hidden[part] = rounded @ head
            if grad_head is not None:
                grad_head += (rounded.t() @ hidden[part]).float()
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def _log_softmax(hidden: Tensor, head: Tensor, rows: Rows, temperatures: Tensor | None) -> Tensor:
    """Return [n, vocab] in fp32, computed by the same operations as sampling. `temperatures` is None when all are 1."""
    logits = products.by_rows(lambda part: products.linear(part, head), hidden, rows)
    if temperatures is None:
        return torch.log_softmax(logits, -1, dtype=torch.float32)
    return torch.log_softmax(logits.float() / temperatures[:, None], -1)
