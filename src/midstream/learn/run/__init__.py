"""A training run: its loop, checkpoints, evaluations and files."""
