"""Rollouts: runs agent flows on tasks, records what they do, and scores it."""

from midstream.rollouts.attempts import Attempt, groups_of
from midstream.rollouts.branches import branches_of
from midstream.rollouts.config import RolloutConfig, SamplingConfig
from midstream.rollouts.evaluation import evaluate_tasks
from midstream.rollouts.manager import AgentFlowManager
from midstream.rollouts.sinks import LocalSink, TrajectorySink
from midstream.rollouts.worker import AgentFlowWorker

__all__ = [
    "AgentFlowManager",
    "AgentFlowWorker",
    "Attempt",
    "LocalSink",
    "RolloutConfig",
    "SamplingConfig",
    "TrajectorySink",
    "branches_of",
    "evaluate_tasks",
    "groups_of",
]
