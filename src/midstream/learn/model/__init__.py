"""What is trained: weights, log-probabilities, the critic and the optimizer step."""
