"""Graders, reward components, presets, and how a config composes them. Knows trajectories, not agents."""

from midstream.rewards.components import StepRewards, component
from midstream.rewards.compose import RewardConfig, RewardFunction

__all__ = ["RewardConfig", "RewardFunction", "StepRewards", "component"]
