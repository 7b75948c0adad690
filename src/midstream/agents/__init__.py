"""Agent flows: the base class, the registry, the built-in flows, and what runs them."""

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import find_flow, load_flows, register
from midstream.agents.rollout import AgentFlowManager, AgentFlowWorker
from midstream.agents.simple import MultiStepAgentFlow, SingleStepSingleTurnAgentFlow

__all__ = [
    "AgentFlowBase",
    "AgentFlowManager",
    "AgentFlowWorker",
    "MultiStepAgentFlow",
    "SingleStepSingleTurnAgentFlow",
    "find_flow",
    "load_flows",
    "register",
]
