"""Agent memory within and across trajectories."""
