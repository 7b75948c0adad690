"""Evaluates agents: success with confidence intervals, learning curves, reports, exports."""
