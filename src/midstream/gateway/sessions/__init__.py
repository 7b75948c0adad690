"""Trajectories in progress and the model calls made in them."""
