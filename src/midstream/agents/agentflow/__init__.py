"""The planner / executor / verifier / generator agent with an evolving memory (AgentFlow, Li et al. 2025, arXiv
2510.05592)."""
