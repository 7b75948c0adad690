"""Training: groups of trajectories in, updated policy weights out."""
