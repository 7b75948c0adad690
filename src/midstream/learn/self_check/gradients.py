"""Checks of gradients and updates, against transformers' autograd and against the same turns cut into other passes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from midstream.learn.batch import LearningBatch, LearningTurn
from midstream.learn.checks import Check, judged
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence
from midstream.learn.noise import FURTHER, factor, least_spread, slope
from midstream.learn.self_check.evidence import Evidence
from midstream.learn.weights import unfused

GRADIENT = {"float32": 1e-3, "bfloat16": 0.3}
"""Smallest limit on the difference of two gradients, as a share of their norm."""
CERTAIN = 0.99
"""A token of at least this probability may have a gradient too small to tell from none."""
MISSING = 0.9
"""A limit on the difference of two gradients above this would let a missing gradient pass: nothing is decided."""
FOLLOWS = 0.5
"""Share of an update that sampling may miss: half way between all and none."""

Gradient = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Alone:
    """The gradient of one turn after another, added up, and by turn the positions at whose output it enters the model.
    `noise` is what the total differs by when each pass computes further rows, as a share of its norm."""

    total: Gradient
    places: list[set[int]]
    noise: float

    def limit(self, dtype: str, rounding: float = 0.0) -> float:
        """What two gradients may differ by, where the dtype's `rounding` adds to the noise: see `noise.py`, with turns
        for sequences."""
        return max(GRADIENT[dtype], math.hypot(self.noise, rounding) * factor(least_spread(len(self.places))))


def prove_gradients(evidence: Evidence) -> Iterator[Check]:
    """Every check of gradients, then of an update. Ratios are taken to the very pass that has the gradient, so the
    sampler's own rounding does not clip any."""
    turns = evidence.batch.turns
    together = gradient(evidence, _learner(evidence), turns)
    alone = gradient_alone(evidence)
    longest = max(len(turn.sequence.prompt_ids + turn.sequence.response_ids) for turn in turns)
    cut = gradient(evidence, _learner(evidence, max_tokens_per_pass=2 * longest), turns)
    yield gradient_in_place(evidence, alone.places)
    yield every_weight_learns(together)
    yield gradient_in_any_passes(evidence, alone, together, cut)
    yield gradient_is_plain(evidence, alone, together)
    if all(torch.isfinite(grad).all() for grad in together.values()):
        yield update_goes_downhill(evidence, together)
        yield sampler_follows_update(evidence)


def gradient(evidence: Evidence, learner: Learner, turns: Sequence[LearningTurn]) -> Gradient:
    """The gradient of `turns` as `learner` finds it, by Hugging Face's names in full tuning, else by peft's."""
    weights = evidence.parts.weights
    learner.accumulate(LearningBatch(list(turns)), evidence.algorithm, anchor=True)
    none = {n: torch.zeros_like(p) for n, p in zip(weights.names(), weights.parameters(), strict=True)}
    found = {name: grad.detach().float().clone() for name, grad in {**none, **weights.gradients()}.items()}
    weights.zero_grad()
    return unfused(weights.decoder, found) if weights.tuning == "full" else found


def gradient_alone(evidence: Evidence) -> Alone:
    """Turn after turn, each twice: alone, and beside one without weight that only adds rows."""
    total: Gradient = {}
    off: Gradient = {}
    places: list[set[int]] = []
    learner = _learner(evidence)

    def forward(module: Any, inputs: Any, output: Tensor) -> None:
        positions, own = inputs[1], places[-1]
        if output.requires_grad:
            output.register_hook(lambda grad: own.update(positions[grad.abs().amax(-1) > 0].tolist()))

    for number, turn in enumerate(evidence.batch.turns):
        places.append(set())
        handle = evidence.parts.decoder.register_forward_hook(forward)
        try:
            own = gradient(evidence, learner, [turn])
        finally:
            handle.remove()
        other = gradient(evidence, learner, [turn, _weightless(turn, FURTHER[number % len(FURTHER)][0], evidence)])
        for name, grad in own.items():
            total[name] = total[name] + grad if name in total else grad
            off[name] = off.get(name, torch.zeros_like(grad)) + other[name] - grad
    return Alone(total, places, _norm(off) / (_norm(total) or math.inf))


def _weightless(turn: LearningTurn, tokens: int, evidence: Evidence) -> LearningTurn:
    """A turn that adds about that many rows to a pass, nothing to a loss, and shares no prefix with `turn`."""
    ids = turn.sequence.prompt_ids + turn.sequence.response_ids
    start = next((n for n, token in enumerate(ids) if token != ids[0]), 0)
    size = max(2, min(tokens, evidence.parts.decoder.context_length))
    more = tuple(ids[(start + n) % len(ids)] for n in range(size))
    nothing = (0.0,) * (size - 1)
    return LearningTurn(
        TokenSequence(more[:1], more[1:], turn.sequence.temperature), nothing, nothing, 0.0, turn.role, turn.group
    )


def gradient_in_place(evidence: Evidence, places: Sequence[set[int]]) -> Check:
    wrong = 0
    for turn, call, by, found in zip(evidence.batch.turns, evidence.taken, evidence.coefficients, places, strict=True):
        prompt, probs = len(turn.sequence.prompt_ids), [math.exp(value) for value in turn.old_log_probs]
        # The output at a position predicts the token after it.
        may = set(range(prompt - 1, prompt - 1 + len(probs))) if call is not None else set[int]()
        must = {prompt - 1 + i for i, p in enumerate(probs) if p < CERTAIN and by[i]} & may
        wrong += len(found - may) + len(must - found)
    return Check(
        "gradient is in place",
        float(wrong),
        wrong == 0,
        "positions with a gradient and no sampled token of a trained role to predict, or the reverse",
    )


def every_weight_learns(found: Mapping[str, Tensor]) -> Check:
    lost = [name for name, grad in found.items() if not (torch.isfinite(grad).all() and grad.any())]
    return Check(
        "every weight learns",
        float(len(lost)),
        not lost,
        f"of {len(found)} trained tensors, those whose gradient is 0 or not finite"
        + (f"; first: {lost[0]}" if lost else ""),
    )


def gradient_in_any_passes(evidence: Evidence, alone: Alone, together: Gradient, cut: Gradient) -> Check:
    return judged(
        "gradient in any passes",
        max(_difference(alone.total, together), _difference(cut, together)),
        alone.limit(evidence.noise.dtype),
        "difference of the gradient between one turn a pass, a few, and all that fit, as a share of its norm",
        ceiling=MISSING,
    )


def gradient_is_plain(evidence: Evidence, alone: Alone, found: Gradient) -> Check:
    """On fresh samples every loss has the policy gradient: minus the sum of weight x advantage x grad log pi."""
    exact = _plain_gradient(evidence, rounded=False)
    rounding = 0.0 if evidence.plain.exact else _difference(_plain_gradient(evidence, rounded=True), exact)
    return judged(
        "gradient is the plain model's",
        _difference(found, exact),
        alone.limit(evidence.noise.dtype, rounding if math.isfinite(rounding) else 0.0),
        "difference from the policy gradient that autograd finds in transformers' model, as a share of its norm",
        ceiling=MISSING,
    )


def _plain_gradient(evidence: Evidence, *, rounded: bool) -> Gradient:
    plain = evidence.plain
    for call, by in zip(evidence.taken, evidence.coefficients, strict=True):
        if call is not None and any(by):
            plain.backward(call.sequence, torch.tensor(by, device=evidence.parts.decoder.device), rounded=rounded)
    return plain.take_gradients()


def update_goes_downhill(evidence: Evidence, found: Mapping[str, Tensor]) -> Check:
    """Of the weights that are sampled from, by a step of a hundredth of what a weight usually is."""
    weights = evidence.parts.weights
    before = weights.snapshot()
    usual = statistics.median(float(value.float().square().mean().sqrt()) for value in before.values())
    _learner(evidence, lr=usual / 100).update(evidence.batch, evidence.algorithm, anchor=True)
    moved = {name: value.float() - before[name].float() for name, value in weights.snapshot().items()}
    steps = unfused(weights.decoder, moved) if weights.tuning == "full" else moved
    along = sum(float((steps[name] * -found[name].to(steps[name].device)).sum()) for name in found)
    size = math.sqrt(sum(float(v.square().sum()) for v in steps.values()))
    value = along / (size * math.sqrt(sum(float(v.square().sum()) for v in found.values())) or math.inf)
    return Check(
        "an update goes downhill",
        value,
        value > 0,
        "cosine between what one update moved the weights by and minus the gradient",
    )


def sampler_follows_update(evidence: Evidence) -> Check:
    """By a further update: the slope of what it changed for sampling by what it changed for learning. It is 1, and 0
    where sampling still uses old weights: without gradients, casts of the weights are kept until the version counts up.
    What sampling and learning always differ by does not count, as only changes are compared."""
    before = evidence.scored(), _sampled(evidence)
    weights = evidence.parts.weights
    usual = statistics.median(float(value.float().square().mean().sqrt()) for value in weights.snapshot().values())
    _learner(evidence, lr=usual / 20).update(evidence.batch, evidence.algorithm, anchor=True)
    learned, sampled = (
        [(b - a).double().cpu().numpy() for a, b in zip(old, new, strict=True)]
        for old, new in zip(before, (evidence.scored(), _sampled(evidence)), strict=True)
    )
    missed = [now - then for now, then in zip(sampled, learned, strict=True)]
    value, error = slope(missed, learned, 0.0)
    check = judged(
        "sampler follows the update",
        abs(value),
        FOLLOWS,
        "share of what an update changes in log-probabilities that sampling does not follow",
    )
    # Where noise could make half of a change, an update of this size shows nothing.
    return replace(check, decided=not check.ok or error < FOLLOWS)


def _sampled(evidence: Evidence) -> list[Tensor]:
    with torch.no_grad():
        return evidence.scored()


def _learner(evidence: Evidence, *, lr: float | None = None, max_tokens_per_pass: int | None = None) -> Learner:
    """One with an optimizer of its own, and without a critic: what is checked is the policy's gradient."""
    config, parts = evidence.parts.config, evidence.parts
    optimizer = config.optimizer.model_copy(update={"lr": lr or config.optimizer.lr, "warmup_steps": 0})
    return Learner(parts.decoder, parts.weights, optimizer, max_tokens_per_pass or config.trainer.max_tokens_per_pass)


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors; one that is missing is 0."""
    apart = norm = 0.0
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        norm += 0.0 if b is None else float(b.square().sum())
        apart += float((_or_zeros(a, b) - _or_zeros(b, a)).square().sum())
    return math.sqrt(apart / norm) if norm else math.inf


def _norm(one: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in one.values()))


def _or_zeros(value: Tensor | None, like: Tensor | None) -> Tensor:
    if value is not None:
        return value.cpu()
    assert like is not None
    return torch.zeros_like(like, device="cpu")
