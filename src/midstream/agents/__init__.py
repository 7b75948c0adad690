"""Agent flows: the base class, the registry and the built-in flows. `midstream.rollouts` runs them."""

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import find_flow, load_flows, register
from midstream.agents.simple import MultiStepAgentFlow, SingleStepSingleTurnAgentFlow

__all__ = [
    "AgentFlowBase",
    "MultiStepAgentFlow",
    "SingleStepSingleTurnAgentFlow",
    "find_flow",
    "load_flows",
    "register",
]
