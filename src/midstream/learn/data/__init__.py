"""Training data: groups from rollouts, stores and replay, turned into batches."""
