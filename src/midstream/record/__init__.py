"""What was sampled, kept: token tree, recorder, durable store, export."""
