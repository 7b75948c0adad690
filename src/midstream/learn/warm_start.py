"""The supervised start: cross-entropy on demonstrations that the flow itself records, in the exact tokens training will
see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from midstream.core.seeds import derive_seed
from midstream.core.types import Trajectory
from midstream.learn.config import WarmStartConfig
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence


def imitate(
    learner: Learner,
    demonstrations: Sequence[Trajectory],
    config: WarmStartConfig,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Train on what the trainable roles said in `demonstrations`; `log(update, metrics)` after each update."""
    update = 0
    # A rate that falls to 0 leaves the choices shown at the shares they were shown in; a constant one ends wherever the
    # last batches pushed it, often at one tool for everything, from where reinforcement learning cannot explore.
    learner.decay_over = config.epochs * -(-len(demonstrations) // config.batch_size)
    for epoch in range(config.epochs):
        order = list(demonstrations)
        Random(derive_seed(seed, "warm start", epoch)).shuffle(order)
        for start in range(0, len(order), config.batch_size):
            sequences = [
                TokenSequence(step.prompt_ids, step.response_ids)
                for trajectory in sorted(order[start : start + config.batch_size], key=lambda t: t.steps[0].prompt_ids)
                for step in trajectory.steps
                if step.trainable
            ]
            update += 1
            log(update, learner.imitate(sequences))
