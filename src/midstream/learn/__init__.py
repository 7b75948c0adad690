"""What turns groups of trajectories into a better policy."""
