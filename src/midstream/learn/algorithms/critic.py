"""Config of a critic, for algorithms that need one."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config


class CriticConfig(Config):
    """The critic: a linear head on a model's last hidden states, initialized to 0."""

    model: str | None = None
    """Separate critic model, by name or directory, tuned like `policy`. Null uses the policy's hidden states, and the
    value loss then trains the policy's weights too."""
    roles: tuple[str, ...] = ()
    """Module roles with separate heads; all other roles share one. States of a planner and a generator with equal
    hidden states may have different values."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the heads."""
    model_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of a separate model."""
    coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss relative to the policy loss when they share a model; 0 trains only the head."""
    clip: float | None = Field(default=0.2, gt=0)
    """Maximum change of a value within a training step before its loss is clipped (Schulman's PPO); null disables
    clipping."""
    warmup: int = Field(default=0, ge=0)
    """Number of first updates in which only the critic learns."""
