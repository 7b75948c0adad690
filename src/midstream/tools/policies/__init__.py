"""Wrappers around any `Toolset`, each for one concern.

`GuardToolset` converts exceptions of a call to a classified result, which the other wrappers read. The wrappers of a
trajectory, from the tools outwards: guard, recording or replay, statistics, breaker, retry, approval, budget, fallback.
"""

from midstream.tools.policies.approval import ApprovalToolset, Approve
from midstream.tools.policies.breaker import Breaker, BreakerToolset
from midstream.tools.policies.budget import BudgetToolset
from midstream.tools.policies.fallback import FallbackToolset, adapted
from midstream.tools.policies.guard import GuardToolset
from midstream.tools.policies.recording import RecordedCalls, RecordingToolset, ReplayToolset
from midstream.tools.policies.retry import RetryToolset
from midstream.tools.policies.statistics import StatisticsToolset, ToolStatistics
from midstream.tools.policies.wrapper import ToolsetWrapper

__all__ = [
    "ApprovalToolset",
    "Approve",
    "Breaker",
    "BreakerToolset",
    "BudgetToolset",
    "FallbackToolset",
    "GuardToolset",
    "RecordedCalls",
    "RecordingToolset",
    "ReplayToolset",
    "RetryToolset",
    "StatisticsToolset",
    "ToolStatistics",
    "ToolsetWrapper",
    "adapted",
]
