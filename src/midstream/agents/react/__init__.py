"""The `react` flow: think, search, reason, act, answer, one typed action a turn."""
