"""Graders, reward components, presets, and their composition by a config. Depends on trajectories, not on agents."""

from midstream.rewards.components import StepRewards, component
from midstream.rewards.compose import RewardConfig, RewardFunction

__all__ = ["RewardConfig", "RewardFunction", "StepRewards", "component"]
