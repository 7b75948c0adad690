"""What turns prompt token ids into sampled token ids with log-probabilities."""
