"""Checks of the whole training path against what owes it nothing: the calls as the engines heard them (`witness.py`)
and the model as transformers runs it (`plain_model.py`)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from midstream.core.types import FinishReason
from midstream.learn.batch import LearningBatch, LearningTurn
from midstream.learn.checks import Check
from midstream.learn.learner import Learner, Reference
from midstream.learn.log_probs import score
from midstream.learn.self_check.evidence import Evidence
from midstream.learn.self_check.witness import Call
from midstream.learn.weights import unfused

PLAIN = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest root mean square difference of log-probabilities from the plain model's, over what one role said."""
GRADIENT = {"float32": 1e-3, "bfloat16": 0.3}
"""Largest difference of a gradient from the plain model's, as a share of its norm."""
ODDS = 5.0
"""Standard deviations that chance does not explain."""
CERTAIN = 0.99
"""A token of at least this probability may have a gradient too small to tell from none."""


def prove(evidence: Evidence) -> Iterator[Check]:
    """Every check, causes before what comes of them. The last ones are of an update."""
    yield temperatures_reach(evidence)
    yield temperature_kept(evidence)
    yield sampler_is_plain(evidence)
    yield drawn_as_recorded(evidence)
    yield attempts_differ(evidence)
    yield end_tokens(evidence)
    yield nothing_left_out(evidence)
    yield nothing_made_up(evidence)
    if not evidence.batch.turns:
        return
    scored = evidence.scored()
    yield learner_is_plain(evidence, scored)
    yield nothing_random(evidence, scored)
    yield alone_as_together(evidence, scored)
    if evidence.reference is not None:
        yield reference_is_start(evidence, evidence.reference)
    if evidence.algorithm.by_reward:
        yield advantage_follows_reward(evidence)
    yield weights_add_up(evidence)
    together = gradient(evidence, _learner(evidence), evidence.batch.turns)
    alone, places = gradient_alone(evidence)
    longest = max(len(turn.sequence.prompt_ids + turn.sequence.response_ids) for turn in evidence.batch.turns)
    cut = gradient(evidence, _learner(evidence, max_tokens_per_pass=2 * longest), evidence.batch.turns)
    yield gradient_in_place(evidence, places)
    yield every_weight_learns(together)
    yield gradient_in_any_passes(evidence, together, alone, cut)
    yield gradient_is_plain(evidence, together)
    if all(torch.isfinite(grad).all() for grad in together.values()):
        yield update_goes_downhill(evidence, together)
        yield sampler_follows_update(evidence)


def temperatures_reach(evidence: Evidence) -> Check:
    """A flow may override a setting in some of its calls; one that no call keeps has no effect."""
    config = evidence.parts.config
    asked: dict[float, set[float]] = {}
    for call in evidence.calls:
        own = config.flow.roles[call.role].sampling.temperature if call.role in config.flow.roles else None
        setting = config.rollout.sampling.temperature if own is None else own
        asked.setdefault(setting, set()).add(call.request.sampling.temperature)
    dead = sum(setting not in temperatures for setting, temperatures in asked.items())
    return Check(
        "temperatures reach the engine",
        float(dead),
        dead == 0,
        "temperatures that are set and that no call asked for",
    )


def temperature_kept(evidence: Evidence) -> Check:
    pairs = zip(evidence.batch.turns, evidence.taken, strict=True)
    gaps = [abs(turn.sequence.temperature - call.sequence.temperature) for turn, call in pairs if call is not None]
    return Check(
        "temperature is kept",
        max(gaps, default=0.0),
        not any(gaps),
        "largest difference between the temperature that is learned at and the one that was asked for",
    )


def sampler_is_plain(evidence: Evidence) -> Check:
    """The policy's calls against the policy, those of `frozen` roles against the model as it was loaded."""
    reported = [(call, torch.tensor(call.completion.log_probs)) for call in evidence.calls]
    value = max(
        evidence.distance(pair for pair in reported if pair[0].engine == "policy"),
        evidence.distance((pair for pair in reported if pair[0].engine == "frozen"), loaded=True),
    )
    return Check(
        "sampler is the plain model",
        value,
        value <= PLAIN[evidence.dtype],
        "log-probabilities by the engine against transformers' (RMS, worst role); more means other weights, another "
        "temperature, or shifted tokens",
    )


def drawn_as_recorded(evidence: Evidence) -> Check:
    """The share of probability below a drawn token is 1/2 in the mean and of known variance, whatever the distribution.
    Calls alike count once; those that were not sampled plainly are not drawn from all of it."""
    sums: dict[str, tuple[float, float]] = {}
    for role, sequence in dict.fromkeys((c.role, c.sequence) for c in evidence.calls if _is_drawn(c)):
        reading = evidence.plain.read(sequence)
        off, variance = sums.get(role, (0.0, 0.0))
        sums[role] = off + float((reading.shares - 0.5).sum()), variance + float(reading.variances.sum())
    odds = [abs(off) / math.sqrt(variance) for off, variance in sums.values() if variance > 1e-3]
    value = max(odds, default=None)
    return Check(
        "drawn as recorded",
        value,
        value is None or value <= ODDS,
        f"standard deviations of the drawn tokens' ranks from chance (worst role, at most {ODDS:g}); more means they "
        "were drawn at another temperature than they are recorded at",
    )


def attempts_differ(evidence: Evidence) -> Check:
    """Of a group's first calls: whether all said the same against all odds."""
    first: dict[str, Call] = {}
    for call in evidence.calls:
        first.setdefault(call.request.session, call)
    alike = 0
    for group in evidence.groups:
        calls = [first[t.uid] for t in group if t.uid in first and _is_drawn(first[t.uid])]
        if len(calls) > 1 and len({call.sequence for call in calls}) == 1:
            alike += (len(calls) - 1) * sum(calls[0].completion.log_probs) < math.log(1e-6)
    return Check(
        "attempts differ",
        float(alike),
        alike == 0,
        "groups whose attempts begin with the same words although that was all but impossible: one seed for all",
    )


def end_tokens(evidence: Evidence) -> Check:
    ended = [c for c in evidence.calls if c.engine == "policy" and c.completion.finish_reason == FinishReason.STOP]
    ids = [call.completion.ids for call in ended if not call.request.sampling.stop]
    ends = evidence.parts.tokenizer.end_ids
    share = sum(bool(one) and one[-1] in ends for one in ids) / len(ids) if ids else None
    return Check(
        "end tokens are there",
        share,
        share in (None, 1.0),
        "share of responses that ended by themselves and hold their end token; without it nothing teaches to stop",
    )


def nothing_left_out(evidence: Evidence) -> Check:
    said = sum(len(call.completion.ids) for call in evidence.trained)
    missing = said - sum(len(call.completion.ids) for call in evidence.taken if call is not None)
    return Check(
        "every sampled token has loss",
        float(missing),
        missing == 0 and said > 0,
        f"of {said} tokens that the engine sampled for trained roles, those that are not in the batch",
    )


def nothing_made_up(evidence: Evidence) -> Check:
    pairs = zip(evidence.batch.turns, evidence.taken, strict=True)
    foreign = sum(len(turn.old_log_probs) for turn, call in pairs if call is None)
    return Check(
        "no other token has loss",
        float(foreign),
        foreign == 0,
        "tokens of turns in the batch that no trained role sampled so: prompts, tool results, other roles",
    )


def learner_is_plain(evidence: Evidence, scored: Sequence[Tensor]) -> Check:
    value = evidence.distance(zip(evidence.taken, scored, strict=True))
    return Check(
        "learner is the plain model",
        value,
        value <= PLAIN[evidence.dtype],
        "log-probabilities by the learner against transformers' (RMS, worst role); more means dropout, another "
        "temperature or adapter scale, or shifted tokens",
    )


def nothing_random(evidence: Evidence, scored: Sequence[Tensor]) -> Check:
    value = float((torch.cat(evidence.scored()) - torch.cat(list(scored))).abs().max())
    return Check(
        "nothing is random",
        value,
        value <= 1e-6,
        "largest difference of a log-probability between two passes of the learner; more means dropout is on",
    )


def alone_as_together(evidence: Evidence, scored: Sequence[Tensor]) -> Check:
    decoder = evidence.parts.decoder
    alone = torch.cat([score(decoder, [turn.sequence]).log_probs.detach().cpu() for turn in evidence.batch.turns])
    value = float((torch.cat(list(scored)) - alone).square().mean().sqrt())
    return Check(
        "alone as together",
        value,
        value <= PLAIN[evidence.dtype] / 10,
        "log-probabilities by the learner (RMS), one sequence a pass against many that share prefixes",
    )


def reference_is_start(evidence: Evidence, reference: Reference) -> Check:
    value = evidence.distance(zip(evidence.taken, evidence.measured(reference), strict=True), loaded=True)
    return Check(
        "reference stays at the start",
        value,
        value <= PLAIN[evidence.dtype],
        "log-probabilities by the reference, once the policy moved, against the model as loaded (RMS, worst role)",
    )


def advantage_follows_reward(evidence: Evidence) -> Check:
    advantages: dict[str, list[float]] = {}
    for turn, call in zip(evidence.batch.turns, evidence.taken, strict=True):
        if call is not None:
            advantages.setdefault(call.request.session, []).extend(turn.advantages)
    attempts = [t for group in evidence.groups for t in group if t.uid in advantages]
    means = [sum(advantages[t.uid]) / len(advantages[t.uid]) for t in attempts]
    both = torch.tensor([[t.reward or 0.0 for t in attempts], means], dtype=torch.float64)
    value = float(torch.corrcoef(both)[0, 1]) if len(attempts) > 1 else None
    return Check(
        "advantage follows reward",
        value,
        value is not None and value > 0,
        "correlation of attempts' advantages with rewards made up for this check",
    )


def weights_add_up(evidence: Evidence) -> Check:
    algorithm = evidence.algorithm
    longest = sum(len(call.completion.ids) for call in evidence.trained) / (len(evidence.trained) or 1)
    tokens = float(sum(len(call.completion.ids) for call in evidence.trained))
    means = {"sequence_sum": longest, "constant_length": longest / algorithm.longest, "sum": tokens}
    total = sum(turn.weight * len(turn.old_log_probs) for turn in evidence.batch.turns)
    value = total / (means.get(algorithm.aggregation, 1.0) or 1.0)
    return Check(
        "weights add up",
        value,
        abs(value - 1) <= 1e-6,
        f"sum of all tokens' weights over what a mean by '{algorithm.aggregation}' has; must be 1",
    )


def gradient(evidence: Evidence, learner: Learner, turns: Sequence[LearningTurn]) -> dict[str, Tensor]:
    """The gradient of `turns` as `learner` finds it, by Hugging Face's names in full tuning, else by peft's."""
    weights = evidence.parts.weights
    learner.accumulate(LearningBatch(list(turns)), evidence.algorithm)
    none = {n: torch.zeros_like(p) for n, p in zip(weights.names(), weights.parameters(), strict=True)}
    found = {name: grad.detach().float().clone() for name, grad in {**none, **weights.gradients()}.items()}
    weights.zero_grad()
    return unfused(weights.decoder, found) if weights.tuning == "full" else found


def gradient_alone(evidence: Evidence) -> tuple[dict[str, Tensor], list[set[int]]]:
    """The gradient of one turn after another, added up; and by turn, the positions at whose output it enters the
    model."""
    total: dict[str, Tensor] = {}
    places: list[set[int]] = []
    learner = _learner(evidence)

    def forward(module: Any, inputs: Any, output: Tensor) -> None:
        positions, own = inputs[1], places[-1]
        if output.requires_grad:
            output.register_hook(lambda grad: own.update(positions[grad.abs().amax(-1) > 0].tolist()))

    handle = evidence.parts.decoder.register_forward_hook(forward)
    try:
        for turn in evidence.batch.turns:
            places.append(set())
            for name, grad in gradient(evidence, learner, [turn]).items():
                total[name] = total[name] + grad if name in total else grad
    finally:
        handle.remove()
    return total, places


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


def gradient_in_any_passes(evidence: Evidence, together: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> Check:
    value = max(_difference(other, together) for other in others)
    return Check(
        "gradient in any passes",
        value,
        value <= GRADIENT[evidence.dtype] / 3,
        "difference of the gradient between one turn a pass, a few, and all that fit, as a share of its norm",
    )


def gradient_is_plain(evidence: Evidence, found: Mapping[str, Tensor]) -> Check:
    """On fresh samples every loss has the policy gradient: minus the sum of weight x advantage x grad log pi."""
    plain = evidence.plain
    for call, by in zip(evidence.taken, evidence.coefficients, strict=True):
        if call is not None and any(by):
            plain.backward(call.sequence, torch.tensor(by, device=evidence.parts.decoder.device))
    value = _difference(found, plain.gradients())
    return Check(
        "gradient is the plain model's",
        value,
        value <= GRADIENT[evidence.dtype],
        "difference from the policy gradient that autograd finds in transformers' model, as a share of its norm",
    )


def update_goes_downhill(evidence: Evidence, found: Mapping[str, Tensor]) -> Check:
    """Of the weights that are sampled from, by a step of a hundredth of what a weight usually is."""
    weights = evidence.parts.weights
    before = weights.snapshot()
    usual = statistics.median(float(value.float().square().mean().sqrt()) for value in before.values())
    _learner(evidence, lr=usual / 100).update(evidence.batch, evidence.algorithm)
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
    """Without gradients, as for sampling, casts of the weights are kept until the version counts up."""
    with torch.no_grad():
        sampling = torch.cat(evidence.scored())
    value = float((sampling - torch.cat(evidence.scored())).square().mean().sqrt())
    return Check(
        "sampler follows the update",
        value,
        value <= PLAIN[evidence.dtype] / 10,
        "log-probabilities after that update (RMS), computed as for sampling against as for learning",
    )


def _learner(evidence: Evidence, *, lr: float | None = None, max_tokens_per_pass: int | None = None) -> Learner:
    """One with an optimizer of its own, and without a critic: what is checked is the policy's gradient."""
    config, parts = evidence.parts.config, evidence.parts
    optimizer = config.optimizer.model_copy(update={"lr": lr or config.optimizer.lr, "warmup_steps": 0})
    return Learner(parts.decoder, parts.weights, optimizer, max_tokens_per_pass or config.trainer.max_tokens_per_pass)


def _is_drawn(call: Call) -> bool:
    altered = call.request.sampling.alterations() or call.request.constraint is not None
    return call.engine == "policy" and not altered


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|one - other| / |other| over all tensors; one that is missing is 0."""
    apart = norm = 0.0
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        norm += 0.0 if b is None else float(b.square().sum())
        apart += float((_or_zeros(a, b) - _or_zeros(b, a)).square().sum())
    return math.sqrt(apart / norm) if norm else math.inf


def _or_zeros(value: Tensor | None, like: Tensor | None) -> Tensor:
    if value is not None:
        return value.cpu()
    assert like is not None
    return torch.zeros_like(like, device="cpu")
