"""Steps that were not sampled plainly: greedily, under a constraint, or with cuts or penalties.

Their recorded log-probabilities are those of the whole vocabulary at the temperature (a greedy step's at 1), as the
learner's are, so ratios are right; but the tokens were not drawn from that distribution, so a gradient over them is not
the policy's in expectation. `rollout.altered_sampling` decides what becomes of them; here they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from midstream.core.types import Step

ALTERED = "altered_sampling"
"""The metric: their share of the tokens that may carry loss; by cause behind a slash."""


def alterations(step: Step) -> Mapping[str, Any]:
    """How `step` was sampled, where that was not plainly: see `core.sampling.ALTERATIONS`."""
    return step.metadata.get("sampling") or {}


def shares(steps: Iterable[Step]) -> dict[str, float]:
    """Of the tokens of `steps`, the share that was not sampled plainly, and the share by cause: of one token there may
    be several."""
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
