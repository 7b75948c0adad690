"""Compares workflows on the tasks they share, so that the difficulty of the tasks cancels out.

`behind` decides when a candidate is given up; `choose_finalist` (finals.py) chooses among the best ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist


def differences(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Score of `one` minus that of `other`, by task that both have."""
    return {task: score - other[task] for task, score in one.items() if task in other}


def behind(one: Mapping[str, float], other: Mapping[str, float], confidence: float = 0.95) -> bool:
    """Whether `one` scores lower than `other` on the tasks they share, so clearly that the rest need not be run.

    The upper end of a one-sided normal interval of the mean difference, with one difference of +1 and one of -1 added
    (as Agresti and Coull 1998 add successes and failures), is below 0. So few tasks decide nothing, and neither does a
    variance of 0. Several looks at one candidate make it wrong more often than `1 - confidence`."""
    found = list(differences(one, other).values())
    if not found:
        return False
    count = len(found) + 2
    mean = sum(found) / count
    variance = (sum(gap * gap for gap in found) + 2) / count - mean * mean
    return mean + NormalDist().inv_cdf(confidence) * math.sqrt(variance / count) < 0
