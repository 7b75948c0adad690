"""Log-probabilities of chosen tokens and their gradients, without full-vocabulary logits for all tokens at once.

The forward pass keeps only the slope of each token's distribution. The backward pass recomputes logits in chunks only
for a trainable head or an entropy with a gradient. Sequences that share a prefix share its computation (see
`merge_prefixes`), and the gradient through it is exact. Under a constraint, log-probabilities and entropies are over
the tokens that it allowed at each position, as the engine's were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from midstream.core.errors import TrainingError
from midstream.core.types import Constraint, Step
from midstream.engines.torch import products
from midstream.engines.torch.allowed import AllowedTokens, join_rows
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.products import Rows
from midstream.learn.model.policy_model import PolicyModel

CHUNK = 128
"""Tokens whose logits are in memory at one time."""
Distribution = tuple[float, tuple[Constraint, int] | None]
"""Temperature, and the constraint with the place in the tokens where it begins."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and its response. Log-probabilities are computed for `response_ids` at `temperature`, over the tokens
    that `constraint` allows, with the adapter that sampled them (empty: the model's first)."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float = 1.0
    constraint: Constraint | None = None
    adapter: str = ""

    @classmethod
    def of(cls, step: Step) -> TokenSequence:
        return cls(step.prompt_ids, step.response_ids, step.temperature, step.constraint, step.adapter)

    @property
    def distribution(self) -> Distribution:
        """What a token's log-probability depends on besides the tokens before it. A constraint counts from the start of
        the response."""
        return self.temperature, None if self.constraint is None else (self.constraint, len(self.prompt_ids))


@dataclass(frozen=True, slots=True)
class States:
    """Decoder states before each response token.

    `hidden` [distinct, d] holds the states that predict a response token, without duplicates; `targets` and
    `temperatures` hold the token and temperature of each. `where` [tokens] maps each response token, sequence after
    sequence, to its state. `computed` counts the distinct tokens computed. `allowed` masks the logits of constrained
    states; None without any.
    """

    hidden: Tensor
    targets: Tensor
    temperatures: Tensor
    where: Tensor
    computed: int
    allowed: AllowedTokens | None = None

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


def run(decoder: PolicyModel, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> States:
    """Run `decoder` over all sequences, computing each shared prefix once. All sequences have the same adapter;
    `adapter` False leaves it out."""
    tree = merge_prefixes([s.prompt_ids + s.response_ids for s in sequences], decoder.device)
    attend = TreeAttention(tree, decoder.group, decoder.dtype, queries=decoder.queries)
    hidden = decoder(tree.tokens, tree.positions, attend, adapter=_adapter_of(decoder, sequences) if adapter else None)
    predictor: dict[tuple[int, Distribution], tuple[int, int]] = {}
    where: list[int] = []
    masks: list[tuple[list[int], Tensor]] = []
    for sequence, path in zip(sequences, tree.paths, strict=True):
        known, distribution = len(predictor), sequence.distribution
        for position in range(len(sequence.prompt_ids), len(path)):
            key = (path[position], distribution)
            index, _ = predictor.setdefault(key, (len(predictor), path[position - 1]))
            where.append(index)
        if sequence.constraint is not None:
            masks.append(_masks(decoder, sequence, where[-len(sequence.response_ids) :], known))
    device = decoder.device
    nodes = torch.tensor([node for node, _ in predictor], device=device)
    before = torch.tensor([previous for _, previous in predictor.values()], device=device)
    temperatures = torch.tensor([temperature for _, (temperature, _) in predictor], device=device)
    return States(
        hidden.index_select(0, before),
        tree.tokens[nodes],
        temperatures,
        torch.tensor(where, device=device),
        tree.size,
        join_rows(masks, device),
    )


def _adapter_of(decoder: PolicyModel, sequences: Sequence[TokenSequence]) -> str:
    """Return the adapter of a pass. A model with one adapter, such as a critic's, has it for every sequence."""
    if len(decoder.adapter_names) < 2:
        return ""
    names = {sequence.adapter for sequence in sequences}
    if len(names) > 1:
        raise ValueError(f"one pass for the adapters {', '.join(sorted(names))}: use `pack_sequences`")
    return names.pop()


def _masks(decoder: PolicyModel, sequence: TokenSequence, rows: list[int], known: int) -> tuple[list[int], Tensor]:
    """Return those of `rows`, the states of a response, that are not among the first `known`, and their masks."""
    if decoder.grammars is None:
        raise TrainingError(
            f"a step was sampled under a {getattr(sequence.constraint, 'kind', '')} constraint, and the model "
            f"'{decoder.source}' has no tokenizer to follow it with",
            "set Decoder.grammars",
        )
    assert sequence.constraint is not None
    bits = decoder.grammars.masks(sequence.constraint, sequence.response_ids)
    new = [place for place, row in enumerate(rows) if row >= known]
    return [rows[place] for place in new], bits[new]


def score(decoder: PolicyModel, sequences: Sequence[TokenSequence], *, adapter: bool = True) -> Scored:
    """Compute log-probabilities and entropies of all response tokens, computing each shared prefix once."""
    states = run(decoder, sequences, adapter=adapter)
    compute = partial(token_log_probs, targets=states.targets, temperatures=states.temperatures, allowed=states.allowed)
    log_probs, entropy = decoder.lm_head(states.hidden, decoder.version, compute)
    return Scored(states.by_token(log_probs), states.by_token(entropy), states)


@torch.no_grad()
def next_token_log_probs(
    decoder: PolicyModel, prefixes: Sequence[Sequence[int]], *, adapter: str | None = ""
) -> Tensor:
    """Return the log-probability of every token that could follow each of `prefixes`, [prefixes, vocab] in fp32, with
    an adapter by name (empty: the first) or None for the base model."""
    whole = [TokenSequence(tuple(prefix), (0,), adapter=adapter or "") for prefix in prefixes]
    states = run(decoder, whole, adapter=adapter is not None)
    return states.by_token(torch.log_softmax(decoder.logits(states.hidden), -1, dtype=torch.float32))


def token_log_probs(
    hidden: Tensor,
    head: Tensor,
    rows: Rows,
    targets: Tensor,
    temperatures: Tensor,
    *,
    allowed: AllowedTokens | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log p(target) and the entropy of the distribution, both [n] in fp32 and differentiable.

    hidden [n, d], head [vocab, d], targets [n], temperatures [n]; p = softmax(hidden headᵀ / temperature), over the
    tokens that `allowed` has for a row. `rows` gives the numbers of rows per matrix product.
    """
    log_probs, entropy = _TokenLogProbs.apply(hidden, head, rows, targets, temperatures, allowed)  # type: ignore[misc]
    return log_probs, entropy


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        rows: Rows,
        targets: Tensor,
        temperatures: Tensor,
        allowed: AllowedTokens | None,
    ) -> tuple[Tensor, Tensor]:
        log_probs, entropies, slopes = [], [], []
        scaled = bool((temperatures != 1).any())
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            refused = _refused(allowed, start, head)
            every = _log_softmax(hidden[part], head, rows, temperatures[part] if scaled else None, refused)
            log_probs.append(every.gather(-1, targets[part, None])[:, 0])
            probs = every.exp()
            _zero(every, refused)
            entropies.append(-torch.bmm(probs[:, None], every[:, :, None])[:, 0, 0])
            if ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]:
                # d log p(t) / d logit = 1[t] - p: p is available now, so the backward pass needs no logits.
                probs.scatter_add_(-1, targets[part, None], probs.new_full((len(probs), 1), -1.0))
                slopes.append(probs.to(hidden.dtype) @ head)
        ctx.scaled, ctx.rows, ctx.allowed = scaled, rows, allowed
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
            return slopes * by[:, None].to(slopes.dtype), None, None, None, None, None
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            refused = _refused(ctx.allowed, start, head)
            every = _log_softmax(hidden[part], head, ctx.rows, temperatures[part] if ctx.scaled else None, refused)
            # d H / d logit = -p (log p + H); in place, because each pass over the vocabulary is expensive.
            by = grad_log_prob[part, None]
            if with_entropy:
                log_p = every if refused is None else _zero(every.clone(), refused)
                by = by + grad_entropy[part, None] * (log_p + entropy[part, None])
            grad = every.exp_().mul_(-by).scatter_add_(-1, targets[part, None], grad_log_prob[part, None])
            if ctx.scaled:
                grad /= temperatures[part, None]
            rounded = grad.to(hidden.dtype)
            grad_hidden[part] = rounded @ head
            if grad_head is not None:
                grad_head += (rounded.t() @ hidden[part]).float()
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None, None, None


def _refused(allowed: AllowedTokens | None, start: int, head: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the constrained rows of the chunk at `start`, counted from there, and their refused tokens."""
    return None if allowed is None else allowed.between(start, start + CHUNK, head.shape[0])


def _log_softmax(
    hidden: Tensor, head: Tensor, rows: Rows, temperatures: Tensor | None, refused: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return [n, vocab] in fp32, computed by the same operations as sampling. `temperatures` is None when all are 1."""
    logits = products.by_rows(lambda part: products.linear(part, head), hidden, rows)
    if temperatures is None and refused is None:
        return torch.log_softmax(logits, -1, dtype=torch.float32)
    logits = logits.float()
    if temperatures is not None:
        logits = logits / temperatures[:, None]
    return torch.log_softmax(_fill(logits, refused, float("-inf")), -1)


def _zero(log_probs: Tensor, refused: tuple[Tensor, Tensor] | None) -> Tensor:
    """Set the log-probabilities of refused tokens to 0, in place: their probability is 0, and 0 times -inf is not."""
    return _fill(log_probs, refused, 0.0)


def _fill(values: Tensor, refused: tuple[Tensor, Tensor] | None, value: float) -> Tensor:
    if refused is not None:
        rows, tokens = refused
        values[rows] = values[rows].masked_fill(tokens, value)
    return values
