"""Log-probabilities of chosen tokens, and their gradients, without ever holding the whole vocabulary for all of them.

Forward keeps of each token's distribution its slope alone: backward computes the logits of a chunk again only for a
head that learns or an entropy that counts. Sequences that share a prefix share its computation (see `merge_prefixes`),
and the gradient through it is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from midstream.engines.torch import products
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.products import Rows

CHUNK = 128
"""Tokens whose logits exist at one time."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and what followed it; log-probabilities are wanted of `response_ids` at `temperature`."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class States:
    """What the decoder holds before each response token. `hidden` [distinct, d] are the states after which one was
    sampled, each once, with the token itself (`targets`) and its temperature; `where` [tokens] is each response token's
    place among them, sequence after sequence. `computed` counts the distinct tokens that were run."""

    hidden: Tensor
    targets: Tensor
    temperatures: Tensor
    where: Tensor
    computed: int

    def detached(self) -> States:
        """The same, with no way back to the decoder."""
        return replace(self, hidden=self.hidden.detach())

    def by_token(self, values: Tensor) -> Tensor:
        """`values` [distinct] given to each response token."""
        # index_select: on several threads the backward pass of plain indexing adds up in an order of its own each time.
        return values.index_select(0, self.where)


@dataclass(frozen=True, slots=True)
class Scored:
    """Per response token, sequence after sequence: `log_probs` and `entropy` [tokens] in fp32, from `states`."""

    log_probs: Tensor
    entropy: Tensor
    states: States

    @property
    def computed(self) -> int:
        """Distinct tokens that were run."""
        return self.states.computed


def run(decoder: Decoder, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> States:
    """`decoder` over every sequence, each shared prefix computed once."""
    tree = merge_prefixes([s.prompt_ids + s.response_ids for s in sequences], decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    hidden = decoder(tree.tokens, tree.positions, attend, adapter=adapter)
    predictor: dict[tuple[int, float], tuple[int, int]] = {}
    where: list[int] = []
    for sequence, path in zip(sequences, tree.paths, strict=True):
        for place in range(len(sequence.prompt_ids), len(path)):
            key = (path[place], sequence.temperature)
            index, _ = predictor.setdefault(key, (len(predictor), path[place - 1]))
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
    """Log-probabilities and entropies of every response token under `decoder`, each shared prefix computed once."""
    states = run(decoder, sequences, adapter=adapter)
    log_probs, entropy = token_log_probs(states.hidden, decoder.head, decoder.rows, states.targets, states.temperatures)
    return Scored(states.by_token(log_probs), states.by_token(entropy), states)


def token_log_probs(
    hidden: Tensor, head: Tensor, rows: Rows, targets: Tensor, temperatures: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of the whole distribution, both [n] in fp32 and differentiable.

    hidden [n, d], head [vocab, d], targets [n], temperatures [n]; p = softmax(hidden headᵀ / temperature). `rows` are
    the numbers of rows that go into a product.
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
                # d log p(t) / d logit = 1[t] - p: as p is here now, backward need not compute the logits again.
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
            # d H / d logit = -p (log p + H); in place, as each pass over the vocabulary costs.
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
    """[n, vocab] in fp32, by the same operations as sampling; `temperatures` None when all are 1."""
    logits = products.by_rows(lambda part: products.linear(part, head), hidden, rows)
    if temperatures is None:
        return torch.log_softmax(logits, -1, dtype=torch.float32)
    return torch.log_softmax(logits.float() / temperatures[:, None], -1)
