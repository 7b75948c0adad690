"""Task sets: where tasks come from, how they are split, and how sources are mixed."""
