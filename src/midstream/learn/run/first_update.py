"""The self-check of a run's first update."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from midstream.learn.data.batch import LearningBatch
from midstream.learn.data.collect import Group
from midstream.learn.losses.mismatch import OwnLogProbs
from midstream.learn.run.run_dir import RunDirectory
from midstream.learn.run.setup import TrainingContext
from midstream.learn.self_check.checks import PLAINLY, first_batch, insist
from midstream.learn.self_check.noise import noise_floor

_log = logging.getLogger(__name__)


def check_first_update(
    context: TrainingContext,
    directory: RunDirectory,
    groups: Sequence[Group],
    batch: LearningBatch,
    sums: Mapping[str, float],
    own: OwnLogProbs,
) -> None:
    """Write `checks.json`. Raises `TrainingError` when a check failed. Arguments as for `step.FirstUpdate`."""
    config = context.config
    reference = config.algorithm.kl.reference
    fresh = reference == "start" or (reference == "base" and not config.warm_start.examples)
    kl = sums["kl"] / (sums.get("weight") or 1.0) if "kl" in sums and fresh else None
    checks = first_batch(
        config,
        groups,
        batch,
        own=own,
        noise=noise_floor(context.decoder, [turn.sequence for turn in batch.turns]),
        version=context.decoder.version - 1,  # the version before the first update
        kl_at_start=kl,
    )
    directory.write_json("checks.json", [asdict(check) for check in checks])
    insist(checks)
    for check in checks:
        if not check.decided:
            _log.warning("self-check '%s' cannot decide at this machine's noise: %s", check.name, check.meaning)
        if check.name == PLAINLY and check.value:
            _log.warning("%.0f %% of tokens: %s", 100 * check.value, check.meaning)
