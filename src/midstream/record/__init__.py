"""Records sampled tokens: token tree, recorder, durable store, export."""
