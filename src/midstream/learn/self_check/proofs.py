"""Checks of the whole training path against independent records: the calls at the engines (`recording_engine.py`) and
the model as transformers runs it (`plain_model.py`). Checks of gradients and updates are in `gradients.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from midstream.core.types import FinishReason
from midstream.learn.model.learner import Reference
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.self_check.checks import TEMPERATURE, Check, judged
from midstream.learn.self_check.evidence import Evidence, judged_by_role
from midstream.learn.self_check.gradients import prove_gradients
from midstream.learn.self_check.noise import UNDECIDABLE, Noise, least_spread, margin, slope, trimmed_rms
from midstream.learn.self_check.plain_model import PlainModel
from midstream.learn.self_check.recording_engine import RecordedCall
from midstream.learn.self_check.recut import halves

ODDS = 5.0
"""Standard deviations that chance does not explain: 6e-7, two-sided."""
POSITIONS = 16
"""Calls that positions are checked with, at most."""
POSITION = 0.2
"""Share of a position that is none, whatever the noise."""
POSITION_OFF = 0.9
"""A limit above this could let one position off pass: nothing is decided."""


def prove(evidence: Evidence) -> Iterator[Check]:
    """Every check, causes before what comes of them. The last ones are of an update."""
    yield temperatures_reach(evidence)
    yield temperature_kept(evidence)
    yield log_probs_kept(evidence)
    yield from sampler_is_plain(evidence)
    yield drawn_as_recorded(evidence)
    yield attempts_differ(evidence)
    yield end_tokens(evidence)
    yield nothing_left_out(evidence)
    yield nothing_made_up(evidence)
    if not evidence.batch.turns:
        return
    scored = evidence.scored()
    yield learner_is_plain(evidence, scored)
    yield alone_as_together(evidence, scored)
    if evidence.reference is not None:
        yield reference_is_start(evidence, evidence.reference)
    if evidence.algorithm.by_reward and evidence.algorithm.role_credit.follows_reward:
        yield advantage_follows_reward(evidence)
    yield weights_add_up(evidence)
    yield from prove_gradients(evidence)


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


def log_probs_kept(evidence: Evidence) -> Check:
    pairs = [(turn, call) for turn, call in zip(evidence.batch.turns, evidence.taken, strict=True) if call is not None]
    changed = sum(
        abs(kept - reported) > 1e-6
        for turn, call in pairs
        for kept, reported in zip(turn.old_log_probs, call.completion.log_probs, strict=True)
    )
    return Check(
        "log-probabilities are kept",
        float(changed),
        changed == 0,
        "tokens of the batch whose log-probability is not the one that the engine reported",
    )


def sampler_is_plain(evidence: Evidence) -> Iterator[Check]:
    """The policy's calls against the policy, those of `frozen` roles against the model as it was loaded."""
    reported = [(call, torch.tensor(call.completion.log_probs)) for call in evidence.calls]
    own = evidence.differences(pair for pair in reported if pair[0].engine == "policy")
    frozen = evidence.differences((pair for pair in reported if pair[0].engine == "frozen"), loaded=True)
    yield judged_by_role(
        "sampler is the plain model",
        {**frozen, **own},
        evidence.plain_noise,
        "log-probabilities by the engine against transformers' (RMS, worst role); more means other weights, another "
        "temperature, or shifted tokens",
    )
    calls = [call for call in evidence.calls if call.engine == "policy"]
    sequences = [call.sequence for role in own for call in calls if call.role == role]
    differences = [difference for role in own.values() for difference in role]
    yield same_scale("scale of sampled logits", evidence.plain, sequences, differences, evidence.plain_noise)
    yield same_positions(evidence, evidence.plain_noise)


def same_scale(
    name: str, plain: PlainModel, sequences: Sequence[TokenSequence], differences: Sequence[np.ndarray], noise: Noise
) -> Check:
    """As `checks.same_temperature`, against the plain model."""
    readings = [plain.read(sequence) for sequence in sequences]
    by = [(r.log_probs + r.entropy).double().cpu().numpy() for r in readings]
    value, error = slope(differences, by, noise.trusted)
    return judged(
        name,
        abs(value),
        TEMPERATURE + error,
        "log of the factor between the engine's logits and transformers', as the tokens show it; more means another "
        "temperature or weights of another scale",
    )


def same_positions(evidence: Evidence, noise: Noise) -> Check:
    """The slope of differences by what they would be if sampled tokens stood one position further on: 0 when they stand
    where they should, 1 when they are one too far. Far more sensitive than the size of the differences. Of an attempt's
    first call alone: what comes before a later one was sampled too, and would stand as far off."""
    first: dict[str, RecordedCall] = {}
    for call in evidence.calls:
        if call.engine == "policy":
            first.setdefault(call.request.session, call)
    by: list[np.ndarray] = []
    differences: list[np.ndarray] = []
    for call in list(first.values())[:POSITIONS]:
        plain = evidence.plain.read(call.sequence).log_probs
        by.append((evidence.plain.displaced(call.sequence) - plain).double().cpu().numpy())
        differences.append((torch.tensor(call.completion.log_probs) - plain.cpu()).double().numpy())
    value, error = slope(differences, by, noise.trusted)
    return judged(
        "positions are right",
        abs(value),
        POSITION + error,
        "how far sampled tokens stand from their positions, as their log-probabilities show it",
        ceiling=POSITION_OFF,
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
    """Check that the first calls of a group are not all equal against all odds."""
    first: dict[str, RecordedCall] = {}
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
    sampled = sum(len(call.completion.ids) for call in evidence.trained)
    missing = sampled - sum(len(call.completion.ids) for call in evidence.taken if call is not None)
    return Check(
        "every sampled token has loss",
        float(missing),
        missing == 0 and sampled > 0,
        f"of {sampled} tokens that the engine sampled for trained roles, those that are not in the batch",
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
    return judged_by_role(
        "learner is the plain model",
        evidence.differences(zip(evidence.taken, scored, strict=True)),
        evidence.plain_noise,
        "log-probabilities by the learner against transformers' (RMS, worst role); more means dropout, another "
        "temperature or adapter scale, or shifted tokens",
    )


def alone_as_together(evidence: Evidence, scored: Sequence[Tensor]) -> Check:
    """Each sequence in a pass of its own, and in halves of the passes with as many rows, as in `recut.py`: where rows
    depend on their number, the latter still find what the former cannot."""
    decoder, turns, noise = evidence.parts.decoder, evidence.batch.turns, evidence.noise
    together = {turn.sequence: own.cpu() for turn, own in zip(turns, scored, strict=True)}
    sequences = list(together)
    alone = [_apart(together[s], score(decoder, [s]).log_probs) for s in sequences]
    first, second = (_in_halves(evidence, sequences, before=before) for before in (False, True))
    halved = [_apart(together[s], first[s]) for s in sequences]
    residual = [_apart(second[s], first[s]) for s in sequences]
    limit = max(noise.rounding / 10, trimmed_rms(residual) * margin(least_spread(len(sequences))))
    value, allowed = max(
        (noise.judge(alone, noise.rounding / 10), (trimmed_rms(halved), limit)), key=lambda one: one[0] / one[1]
    )
    check = judged(
        "alone as together",
        value,
        allowed,
        "log-probabilities by the learner (RMS): passes that share prefixes against one sequence a pass, and against "
        "half of them with as many unrelated tokens",
    )
    return replace(check, finds=limit, decided=not check.ok or limit <= UNDECIDABLE)


def _in_halves(evidence: Evidence, sequences: Sequence[TokenSequence], *, before: bool) -> dict[TokenSequence, Tensor]:
    decoder, max_tokens = evidence.parts.decoder, evidence.parts.config.trainer.max_tokens_per_pass
    found: dict[TokenSequence, Tensor] = {}
    for half, others in halves(sequences, max_tokens, lambda s: s, decoder, before=before):
        together = [*others, *half] if before else [*half, *others]
        parts = score(decoder, together).log_probs.detach().split([len(s.response_ids) for s in together])
        found.update((s, part) for s, part in zip(together, parts, strict=True) if s in set(half))
    return found


def _apart(one: Tensor, other: Tensor) -> np.ndarray:
    return (one.detach().cpu() - other.detach().cpu()).double().numpy()


def reference_is_start(evidence: Evidence, reference: Reference) -> Check:
    return judged_by_role(
        "reference stays at the start",
        evidence.differences(zip(evidence.taken, evidence.measured(reference), strict=True), loaded=True),
        evidence.plain_noise,
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


def _is_drawn(call: RecordedCall) -> bool:
    whole = call.request.constraint is None or call.completion.over_allowed
    altered = call.request.sampling.alterations() or not whole
    return call.engine == "policy" and not altered
