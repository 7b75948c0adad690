"""Flows in which several module roles work together: a coordinator, peers, handoffs, and a simulated user."""
