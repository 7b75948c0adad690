"""Sampling from logits: temperature, penalties, cuts, and one uniform number per token, so a seed fixes a response.

A token is drawn by inverting the cumulative distribution at a number derived from (seed, position): it depends only on
the request, never on the rest of the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from midstream.core.sampling import SamplingParams
from midstream.core.seeds import unit_interval

_CHUNK = 256


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    position: Sequence[int],
    limited: Mapping[int, Tensor] | None = None,
    penalised: Mapping[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token for each row of `logits` [n, vocab]; return (tokens [n], their log-probabilities [n], all
    log-probabilities [n, vocab]), in fp32.

    Log-probabilities are at the row's temperature (temperature 1 for greedy rows). `limited` maps rows to logits
    [vocab] in fp32 that replace theirs: those of a constrained row, -inf for refused tokens. `penalised` maps rows to
    logits from which the token is picked, while its log-probability stays that without penalties.
    """
    logits = logits.float()
    if limited:
        logits = logits.clone()
        for row, own in limited.items():
            logits[row] = own
    temperatures = torch.tensor([p.temperature or 1.0 for p in params], device=logits.device)
    if any(p.temperature not in (0.0, 1.0) for p in params):
        logits = logits / temperatures[:, None]
    log_probs = torch.log_softmax(logits, -1)
    drawn = [row for row, p in enumerate(params) if p.temperature > 0]
    # Each pass over the vocabulary costs time: only greedy rows need the maximum, only sampled rows the cumulative sum.
    everything = len(drawn) == len(params)
    picked = torch.zeros(0, dtype=torch.long, device=logits.device)
    if drawn:
        probs = (log_probs if everything else log_probs[drawn]).exp()
        for i, row in enumerate(drawn):
            p = params[row]
            if penalised and row in penalised:
                probs[i] = torch.softmax(penalised[row] / p.temperature, -1)
            if p.top_k or p.top_p < 1 or p.min_p:
                probs[i] = _truncate(probs[i], p)
        uniform = [unit_interval("token", seeds[row], position[row]) for row in drawn]
        picked = _invert(probs, torch.tensor(uniform, dtype=torch.float64, device=logits.device))
    if everything:
        tokens = picked
    else:
        tokens = log_probs.argmax(-1).index_copy(0, torch.tensor(drawn, dtype=torch.long, device=logits.device), picked)
        for row, scores in (penalised or {}).items():
            if params[row].temperature == 0:
                tokens[row] = scores.argmax()
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0], log_probs


def penalise(logits: Tensor, params: SamplingParams, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Apply the penalties of `params` to `logits` [vocab], for tokens of `prompt` and of the `response` so
    far."""
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *response}), device=logits.device)
        of_seen, penalty = logits[seen], params.repetition_penalty
        logits[seen] = torch.where(of_seen > 0, of_seen / penalty, of_seen * penalty)
    if response:
        times = Counter(response)
        taken = torch.tensor(list(times.values()), dtype=logits.dtype, device=logits.device) * params.frequency_penalty
        logits[torch.tensor(list(times), device=logits.device)] -= taken + params.presence_penalty
    return logits


def _truncate(probs: Tensor, p: SamplingParams) -> Tensor:
    """Keep tokens with at least `min_p` of the largest probability, of these the `top_k` most likely (0: all), of these
    the smallest set whose probability mass reaches `top_p`."""
    ordered, index = probs.sort(descending=True)
    keep = ordered >= p.min_p * ordered[0]
    if p.top_k:
        keep[p.top_k :] = False
    if p.top_p < 1:
        mass = torch.where(keep, ordered, 0).double()
        before = mass.cumsum(-1) - mass
        keep &= before < p.top_p * mass.sum()
    return torch.zeros_like(probs).scatter(-1, index, torch.where(keep, ordered, 0))


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Return the token at which the cumulative sum of `probs` [n, vocab] passes `uniform` [n], in two levels."""
    n, vocab = probs.shape
    blocks = -(-vocab // _CHUNK)
    if vocab % _CHUNK:
        probs = torch.nn.functional.pad(probs, (0, blocks * _CHUNK - vocab))
    padded = probs.view(n, blocks, _CHUNK)
    running = padded.sum(-1).double().cumsum(-1)
    goal = uniform * running[:, -1]
    block = torch.searchsorted(running, goal[:, None], right=True).clamp_(max=blocks - 1)
    before = torch.where(block > 0, running.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded.gather(1, block[:, :, None].expand(n, 1, _CHUNK))[:, 0].double()
    within = inside.cumsum(-1) + before
    offset = torch.searchsorted(within, goal[:, None], right=True)
    # Rounding may push the target past the block's end: take the last token in it with nonzero mass.
    last = (inside > 0).double().mul_(torch.arange(1, _CHUNK + 1, device=probs.device)).argmax(-1, keepdim=True)
    return (block * _CHUNK + torch.minimum(offset, last))[:, 0]
