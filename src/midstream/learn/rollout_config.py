"""The `rollout` section of a training config: where groups come from, and which of their steps are learned from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from midstream.core.config import Config
from midstream.rollouts.config import RolloutConfig


class ReplayConfig(Config):
    """Replay of groups from earlier steps."""

    capacity: int = Field(default=0, ge=0)
    """Newest groups kept; 0 turns replay off."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of a step's groups taken from the buffer, if it holds that many; the rest are newly sampled. Rounded to
    whole groups, at least one of each."""
    sampling: Literal["uniform", "recent", "prioritised"] = "uniform"
    """`uniform`: every group in the buffer with equal probability. `recent`: the newest. `prioritised`: in proportion
    to the variance of the group's rewards."""

    def groups(self, tasks_per_step: int) -> int:
        """Number of a step's groups to take from the buffer."""
        return min(max(round(self.share * tasks_per_step), 1), tasks_per_step - 1) if self.capacity else 0


class StoreSourceConfig(Config):
    """A store that another process (such as a gateway) records into, to train on instead of rolling out."""

    store: str
    """A file, or a `postgresql://` URL."""
    channel: str = "train"
    """Channel whose groups are taken."""
    lease_s: float = Field(default=3600.0, gt=0)
    """Groups stay leased to a run for this long after its last heartbeat; then other runs may take them."""
    wait_s: float = Field(default=600.0, gt=0)
    """How long a step waits for its groups. Then it takes those that are ready; if none are, the run stops and keeps
    what it has learned."""


class MaxFailedConfig(Config):
    """Largest share of a step's attempts that may fail, by cause. Above it the run stops and names the cause; 1 never
    stops it."""

    infrastructure: float = Field(default=0.5, ge=0, le=1)
    """Failures because an engine, a judge or another service could not be reached."""
    reward: float = Field(default=0.5, ge=0, le=1)
    """Failures because a reward component raised or took too long."""
    agent: float = Field(default=1.0, ge=0, le=1)
    """Failures of the agent itself: its flow raised, its prompt outgrew the context, or it took too long."""


class TrainRolloutConfig(RolloutConfig):
    """How trajectories are made, and which of them are learned from."""

    source: StoreSourceConfig | None = None
    """Take groups from a store instead of making them; `midstream train --from-store` sets it."""

    tasks_per_step: int = Field(default=6, ge=1)
    """Tasks per training step."""
    steps_ahead: int = Field(default=0, ge=0)
    """Training steps by which sampling may run ahead of learning. At 0 each step is sampled by the newest policy. Above
    0, the attempts of the next steps begin while a step is learned from, so that slow tools do not hold up learning;
    samples are then up to this many training steps old, and the numbers of a run depend on timing."""
    backfill: int = Field(default=0, ge=0)
    """Drop groups whose rewards are all equal and attempt other tasks instead, for at most this many rounds a step; 0
    keeps them and counts them in the denominators of the loss."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Most policy versions (updates) between sampling a step and learning from it. An older step is not trained on; it
    still counts in the denominators of the loss, and its trajectory in its group's statistics. A group whose oldest
    step is older leaves the replay buffer. `null` is no limit."""
    replay: ReplayConfig = ReplayConfig()
    """Replay of groups from earlier steps."""
    truncated: Literal["keep", "mask", "drop"] = "keep"
    """A trajectory with a response that hit `max_tokens`: `keep` trains on it; `mask` counts it in its group's
    statistics and in the denominators of the loss, without training on it; `drop` leaves it out."""
    altered_sampling: Literal["keep", "mask"] = "keep"
    """A step sampled greedily, or with `top_p`, `top_k`, `min_p` or penalties: `keep` trains on it; `mask` does not
    train on it, but counts it in the denominators of the loss, and its trajectory in its group's statistics. A step
    under a constraint is altered only if its engine reported log-probabilities over the whole vocabulary."""
    failed: Literal["drop", "mask", "score"] = "mask"
    """A failed or timed-out trajectory: `drop` leaves it out of its group; `mask` leaves it out but counts it in the
    denominators of the loss; `score` gives it `reward.failed` and trains on it, except for failures of infrastructure
    and of a reward component, which never count as an outcome."""
    max_failed: MaxFailedConfig = MaxFailedConfig()
    """Largest share of a step's attempts that may fail, by cause, before the run stops. A first step in which every
    attempt fails stops the run too."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainRolloutConfig:
        if self.replay.capacity and self.tasks_per_step < 2:
            raise ValueError("rollout.replay needs rollout.tasks_per_step of 2 or more: one group is newly sampled")
        return self
