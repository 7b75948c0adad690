"""Statistics on altered sampling: greedy, cut or penalized steps.

Such steps record log-probabilities before cuts and penalties, at the temperature (at 1 for a greedy step), and so does
the learner. Ratios are therefore correct. But the tokens were not drawn from that distribution, so their expected
gradient is not the policy gradient. `rollout.altered_sampling` decides how these steps are used; this module only
counts them.

A constrained step is a plain sample of the constrained policy, see `Step.constraint`. It counts as altered only if its
engine reported log-probabilities over the whole vocabulary (`constraint` among the alterations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from midstream.core.types import Step

ALTERED = "altered_sampling"
"""Metric: share of trainable tokens with altered sampling. `ALTERED/<cause>` is the share by cause."""


def alterations(step: Step) -> Mapping[str, Any]:
    """Return the alterations of a step's sampling, empty for a plain sample. See `core.sampling.ALTERATIONS`."""
    return step.metadata.get("sampling") or {}


def shares(steps: Iterable[Step]) -> dict[str, float]:
    """Return the share of tokens with altered sampling, in total and by cause. A token can have several causes."""
    tokens: Counter[str] = Counter()
    total = 0
    for step in steps:
        total += len(step.response_ids)
        found = alterations(step)
        if found:
            tokens[ALTERED] += len(step.response_ids)
        for cause in found:
            tokens[f"{ALTERED}/{cause}"] += len(step.response_ids)
    return {ALTERED: 0.0, **{name: count / total for name, count in sorted(tokens.items())}}
