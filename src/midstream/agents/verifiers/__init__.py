"""Environments of verifiers (v1): the flow that plays them, and the agent that acts in those without one."""
