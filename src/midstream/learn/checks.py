"""What the trainer checks of itself on the first batch, before anybody believes a curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from midstream.core.errors import TrainingError
from midstream.core.types import FinishReason, Trajectory
from midstream.learn.batch import LearningBatch

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.25}
"""Largest difference of a log-probability between sampler and learner that is rounding and not a fault."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `ok` False stops the run, `meaning` says what the number says."""

    name: str
    value: float | None
    ok: bool
    meaning: str


def first_batch(
    groups: Sequence[Sequence[Trajectory]],
    batch: LearningBatch,
    sums: Mapping[str, float],
    dtype: str,
    kl_at_start: float | None,
) -> list[Check]:
    """Ratio, sampler against learner, reference KL, mask coverage, zero-variance groups, truncation."""
    trajectories = [t for group in groups for t in group]
    steps = [step for t in trajectories for step in t.steps]
    largest = sums.get("max:log_ratio", 0.0)
    mean = abs(sums.get("sampler_kl", 0.0)) / (sums.get("weight") or 1.0)
    tolerance = TOLERANCE.get(dtype, 0.25)
    checks = [
        Check(
            "sampler and learner agree",
            largest,
            largest <= tolerance,
            "largest difference of a sampled token's log-probability between engine and learner "
            f"(at most {tolerance:g} in {dtype}); more means other weights, another temperature, dropout, or "
            "shifted tokens",
        ),
        Check(
            "ratio is 1",
            mean,
            mean <= tolerance / 10,
            "mean log-ratio of policy to sampler before the first update; 0 on fresh samples",
        ),
    ]
    if kl_at_start is not None:
        checks.append(
            Check(
                "reference KL is 0",
                kl_at_start,
                kl_at_start <= tolerance / 10,
                "the policy starts as its reference; more means another reference",
            )
        )
    roles = Counter[str]()
    masked = Counter[str]()
    for step in steps:
        roles[step.role] += len(step.response_ids)
        masked[step.role] += sum(step.loss_mask)
    for role in sorted(roles):
        share = masked[role] / roles[role] if roles[role] else 0.0
        checks.append(
            Check(
                f"loss on {role}",
                share,
                share in (0.0, 1.0),
                "share of this role's sampled tokens that carry loss: 1 trained, 0 not",
            )
        )
    counts = batch.counts
    flat = counts["zero_variance_groups"] / counts["groups"] if counts.get("groups") else None
    checks.append(
        Check(
            "zero-variance groups",
            flat,
            True,
            "share of groups whose rewards are all equal: they teach nothing; near 1 the task is too hard or too easy",
        )
    )
    truncated = sum(step.finish_reason == FinishReason.LENGTH for step in steps) / len(steps) if steps else None
    checks.append(
        Check(
            "truncated responses",
            truncated,
            True,
            "share of responses that hit max_tokens; much above 0 wastes samples",
        )
    )
    return checks


def insist(checks: Sequence[Check]) -> None:
    """Raise `TrainingError` naming every check that failed."""
    failed = [check for check in checks if not check.ok]
    if failed:
        lines = "\n  ".join(f"{check.name} = {check.value:.4g}: {check.meaning}" for check in failed)
        raise TrainingError(f"the self-check on the first batch failed; nothing was saved\n  {lines}")
