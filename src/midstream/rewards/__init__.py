"""Graders, reward components, presets, and how a config composes them. Knows trajectories, not agents."""
