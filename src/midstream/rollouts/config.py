"""Config of a rollout: sampling, group size, concurrency and time limit."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config


class SamplingConfig(Config):
    """Sampling of roles without their own settings."""

    max_tokens: int = Field(default=256, ge=1)
    """Maximum tokens of one response."""
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    top_k: int = Field(default=0, ge=0)
    """Sample from the k most likely tokens; 0 means all."""
    stop: tuple[str, ...] = ()
    """Text that ends a response."""


class RolloutConfig(Config):
    """How trajectories are generated."""

    group_size: int = Field(default=8, ge=1)
    """Trajectories per task (G)."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling of roles without their own settings (`flow.roles.*.sampling`)."""
    concurrency: int = Field(default=64, ge=1)
    """Maximum concurrent trajectories."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit of one trajectory, in seconds of wall time."""
    resume_attempts: bool = False
    """Record the actions of attempts on disk, so that an attempt whose process died continues instead of starting
    again: recorded model calls are not sampled again, and successful tool calls are not repeated. An attempt that ended
    by a failure starts again."""
