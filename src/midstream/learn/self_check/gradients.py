"""Checks of gradients and updates, against transformers' autograd and against the same turns cut into other passes.

Where rows of products depend on their number, that noise in a gradient is large and uneven: a few tokens with steep
gradients make most of it, and the turns of one pass share it. So it is not judged by one factor. Passes are compared
with passes that have as many rows (`recut.py`), where next to nothing is left of it. Against the plain model, which has
no such rows, each turn's difference r_i is set beside what further rows make of the same turn, q_i, and the geometric
mean of r_i / q_i is judged: the turns' unevenness cancels. Its limit is exp(t * sd / sqrt(n)), with sd the standard
deviation of log(r_i / q_i) over n turns and t the quantile of the probability 5e-6; as q_i differs from r_i in having
noise on both sides, 1 is already generous. A machine that shows no such noise is `quiet`: there all cuts, and the sums
of all turns, are compared directly."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midstream.learn.data.batch import LearningBatch, LearningTurn
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.self_check.checks import Check, judged
from midstream.learn.self_check.evidence import Evidence
from midstream.learn.self_check.noise import FURTHER, factor, least_spread, margin, slope, t_quantile
from midstream.learn.self_check.recording_engine import RecordedCall
from midstream.learn.self_check.recut import halves

GRADIENT = {"float32": 1e-3, "bfloat16": 0.3}
"""Smallest limit on the difference of two gradients, as a share of their norm."""
CERTAIN = 0.99
"""A token of at least this probability may have a gradient too small to tell from none."""
MISSING = 0.9
"""A limit on the difference of two gradients above this would let a missing gradient pass: nothing is decided."""
FOLLOWS = 0.5
"""Share of an update that sampling may miss: half way between all and none."""

UNCUT = 2**62
"""Tokens a pass where all that is given goes into one."""

Gradient = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Alone:
    """Gradients of one turn after another. `total` is their sum, `plain` that of the plain model's, `rounded` the same
    from products in the policy's dtype. `places` are, by turn, the positions at whose output its gradient enters the
    model. By turn, as shares of its norm: `apart` is the difference from the plain model's gradient, `noise` that from
    the same turn with further rows, `rounding` what the dtype makes in the plain model."""

    total: Gradient
    plain: Gradient
    rounded: Gradient
    places: list[set[int]]
    apart: list[float]
    noise: list[float]
    rounding: list[float]

    def typical(self, dtype: str) -> tuple[float, float]:
        """The geometric mean of `apart`, and what noise allows it to be. What is below rounding counts as rounding."""
        least = GRADIENT[dtype]
        noise = np.log(np.maximum(np.hypot(self.noise, self.rounding), least))
        apart = np.log(np.maximum(self.apart, least))
        n = len(apart)
        error = float((apart - noise).std(ddof=1)) / math.sqrt(n) if n > 1 else 1.0
        return math.exp(apart.mean()), math.exp(noise.mean() + t_quantile(n - 1) * error)

    def quiet(self, dtype: str) -> bool:
        """Whether rows of products depend so little on their number that all cuts may be compared."""
        return max(self.noise, default=0.0) <= GRADIENT[dtype]

    def limit(self, dtype: str, rounding: float = 0.0) -> float:
        """What sums over all turns may differ by, as a share of the norm, where it is quiet."""
        noise = math.sqrt(sum(share**2 for share in self.noise) / max(len(self.noise), 1))
        allowed = math.hypot(noise, rounding) * factor(least_spread(len(self.places)))
        return max(GRADIENT[dtype], allowed if math.isfinite(allowed) else 0.0)


def prove_gradients(evidence: Evidence) -> Iterator[Check]:
    """Every check of gradients, then of an update. Ratios are taken to the very pass that has the gradient, so the
    sampler's own rounding does not clip any."""
    turns = evidence.batch.turns
    together = gradient(evidence, _learner(evidence), turns)
    alone = gradients_alone(evidence)
    yield gradient_in_place(evidence, alone.places)
    yield every_weight_learns(together)
    yield gradient_in_any_passes(evidence, alone, together)
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
    return weights.decoder.to_hf(found) if weights.tuning == "full" else found


def gradients_alone(evidence: Evidence) -> Alone:
    """Turn after turn, each in a pass of its own, again beside one without weight that only adds rows, and in the plain
    model."""
    alone = Alone({}, {}, {}, [], [], [], [])
    learner = _learner(evidence)

    def forward(module: Any, inputs: Any, output: Tensor) -> None:
        positions, own = inputs[1], alone.places[-1]
        if output.requires_grad:
            output.register_hook(lambda grad: own.update(positions[grad.abs().amax(-1) > 0].tolist()))

    turns = zip(evidence.batch.turns, evidence.taken, evidence.coefficients, strict=True)
    for number, (turn, call, by) in enumerate(turns):
        alone.places.append(set())
        handle = evidence.parts.decoder.register_forward_hook(forward)
        try:
            own = gradient(evidence, learner, [turn])
        finally:
            handle.remove()
        plain = _plain_gradient(evidence, call, by, rounded=False)
        rounded = plain if evidence.plain.exact else _plain_gradient(evidence, call, by, rounded=True)
        _add(alone.total, own)
        _add(alone.plain, plain)
        _add(alone.rounded, rounded)
        norm = _norm(plain) or _norm(own)
        if norm:
            more = _weightless(turn, FURTHER[number % len(FURTHER)][0], evidence)
            alone.apart.append(_apart(own, plain) / norm)
            alone.noise.append(_apart(gradient(evidence, learner, [turn, more]), own) / norm)
            alone.rounding.append(_apart(rounded, plain) / norm)
    return alone


def gradient_in_halves(evidence: Evidence, *, before: bool) -> Gradient:
    """The gradient from halves of passes, with as many rows as the whole: see `recut.py`."""
    config, decoder = evidence.parts.config, evidence.parts.decoder
    learner = _learner(evidence, max_tokens_per_pass=UNCUT)
    total: Gradient = {}
    cut = halves(
        evidence.batch.turns, config.trainer.max_tokens_per_pass, lambda turn: turn.sequence, decoder, before=before
    )
    for half, others in cut:
        _add(total, gradient(evidence, learner, [*half, *(_without_weight(one, half[0]) for one in others)]))
    return total


def _without_weight(sequence: TokenSequence, like: LearningTurn) -> LearningTurn:
    nothing = (0.0,) * len(sequence.response_ids)
    return LearningTurn(sequence, nothing, nothing, 0.0, like.role, like.group)


def _weightless(turn: LearningTurn, tokens: int, evidence: Evidence) -> LearningTurn:
    """A turn that adds about that many rows to a pass, nothing to a loss, and shares no prefix with `turn`."""
    ids = turn.sequence.prompt_ids + turn.sequence.response_ids
    start = next((n for n, token in enumerate(ids) if token != ids[0]), 0)
    size = max(2, min(tokens, evidence.parts.decoder.context_length))
    more = tuple(ids[(start + n) % len(ids)] for n in range(size))
    sequence = TokenSequence(more[:1], more[1:], turn.sequence.temperature, adapter=turn.sequence.adapter)
    return _without_weight(sequence, turn)


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


def gradient_in_any_passes(evidence: Evidence, alone: Alone, together: Gradient) -> Check:
    dtype, turns = evidence.noise.dtype, evidence.batch.turns
    halved, again = (gradient_in_halves(evidence, before=before) for before in (False, True))
    residual = _difference(again, halved) * margin(least_spread(len(turns)))
    limit = max(GRADIENT[dtype], residual if math.isfinite(residual) else 0.0)
    found = [(_difference(halved, together), limit)]
    if alone.quiet(dtype):
        longest = max(len(turn.sequence.prompt_ids + turn.sequence.response_ids) for turn in turns)
        cut = gradient(evidence, _learner(evidence, max_tokens_per_pass=2 * longest), turns)
        found += [(_difference(one, together), alone.limit(dtype)) for one in (alone.total, cut)]
    check = judged(
        "gradient in any passes",
        *max(found, key=lambda one: one[0] / one[1]),
        "difference of the gradient, as a share of its norm, between all turns that fit in a pass and half of them "
        "with as many unrelated tokens; where rounding allows, also one turn or a few a pass",
        ceiling=MISSING,
    )
    return replace(check, finds=limit)


def gradient_is_plain(evidence: Evidence, alone: Alone, together: Gradient) -> Check:
    """On fresh samples every loss has the policy gradient: minus the sum of weight x advantage x grad log pi."""
    dtype = evidence.noise.dtype
    if alone.quiet(dtype):
        value = _difference(together, alone.plain)
        limit, of = alone.limit(dtype, _difference(alone.rounded, alone.plain)), ""
    else:
        (value, limit), of = alone.typical(dtype), " (typical turn)"
    return judged(
        "gradient is the plain model's",
        value,
        limit,
        "difference from the policy gradient that autograd finds in transformers' model, as a share of its norm" + of,
        ceiling=MISSING,
    )


def _plain_gradient(evidence: Evidence, call: RecordedCall | None, by: Sequence[float], *, rounded: bool) -> Gradient:
    if call is not None and any(by):
        by_token = torch.tensor(by, device=evidence.parts.decoder.device)
        evidence.plain.backward(call.sequence, by_token, rounded=rounded)
    return evidence.plain.take_gradients()


def update_goes_downhill(evidence: Evidence, found: Mapping[str, Tensor]) -> Check:
    """Of the weights that are sampled from, by a step of a hundredth of what a weight usually is."""
    weights = evidence.parts.weights
    before = weights.snapshot()
    usual = statistics.median(float(value.float().square().mean().sqrt()) for value in before.values())
    _learner(evidence, lr=usual / 100).update(evidence.batch, evidence.algorithm, anchor=True)
    moved = {name: value.float() - before[name].float() for name, value in weights.snapshot().items()}
    steps = weights.decoder.to_hf(moved) if weights.tuning == "full" else moved
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


def _add(total: Gradient, more: Mapping[str, Tensor]) -> None:
    for name, grad in more.items():
        total[name] = total[name] + grad.cpu() if name in total else grad.cpu()


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors; one that is missing is 0."""
    norm = _norm(other)
    return _apart(one, other) / norm if norm else math.inf


def _apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    pairs = [(one.get(name), other.get(name)) for name in one.keys() | other.keys()]
    return math.sqrt(sum(float((_or_zeros(a, b) - _or_zeros(b, a)).square().sum()) for a, b in pairs))


def _norm(one: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in one.values()))


def _or_zeros(value: Tensor | None, like: Tensor | None) -> Tensor:
    if value is not None:
        return value.cpu()
    assert like is not None
    return torch.zeros_like(like, device="cpu")
