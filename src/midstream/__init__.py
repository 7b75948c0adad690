"""Midstream trains LLM agents in the flow.

The public names are imported when they are first used, so that `import midstream` needs neither torch nor a database.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from midstream.agents import AgentFlowBase, MultiStepAgentFlow, SingleStepSingleTurnAgentFlow, register
    from midstream.agents.black_box import (
        BlackBoxAgentFlowBase,
        BlackBoxCommandAgentFlow,
        BlackBoxGSM8KAgentFlow,
    )
    from midstream.api import (
        ask,
        ask_async,
        export,
        load_config,
        rollout,
        rollout_async,
        train,
        train_async,
        tune,
    )
    from midstream.core.sampling import SamplingParams
    from midstream.core.types import Step, Task, Trajectory
    from midstream.plans import AgentExecutor
    from midstream.rewards import component
    from midstream.rollouts import AgentFlowManager, AgentFlowWorker
    from midstream.rollouts.standalone import AutoGPT, PlanAndExecute
    from midstream.tasks import FiniteTaskSet, TaskSet, register_tasks
    from midstream.tools import mask_retrieved_tokens, tool

__version__ = "0.1.0"

__all__ = [
    "AgentExecutor",
    "AgentFlowBase",
    "AgentFlowManager",
    "AgentFlowWorker",
    "AutoGPT",
    "BlackBoxAgentFlowBase",
    "BlackBoxCommandAgentFlow",
    "BlackBoxGSM8KAgentFlow",
    "FiniteTaskSet",
    "MultiStepAgentFlow",
    "PlanAndExecute",
    "SamplingParams",
    "SingleStepSingleTurnAgentFlow",
    "Step",
    "Task",
    "TaskSet",
    "Trajectory",
    "ask",
    "ask_async",
    "component",
    "export",
    "load_config",
    "mask_retrieved_tokens",
    "register",
    "register_tasks",
    "rollout",
    "rollout_async",
    "tool",
    "train",
    "train_async",
    "tune",
]

_HOME = {
    "AgentExecutor": "midstream.plans",
    "AgentFlowBase": "midstream.agents",
    "AgentFlowManager": "midstream.rollouts",
    "AgentFlowWorker": "midstream.rollouts",
    "AutoGPT": "midstream.rollouts.standalone",
    "BlackBoxAgentFlowBase": "midstream.agents.black_box",
    "BlackBoxCommandAgentFlow": "midstream.agents.black_box",
    "BlackBoxGSM8KAgentFlow": "midstream.agents.black_box",
    "FiniteTaskSet": "midstream.tasks",
    "MultiStepAgentFlow": "midstream.agents",
    "PlanAndExecute": "midstream.rollouts.standalone",
    "SamplingParams": "midstream.core.sampling",
    "SingleStepSingleTurnAgentFlow": "midstream.agents",
    "Step": "midstream.core.types",
    "Task": "midstream.core.types",
    "TaskSet": "midstream.tasks",
    "Trajectory": "midstream.core.types",
    "ask": "midstream.api",
    "ask_async": "midstream.api",
    "component": "midstream.rewards",
    "export": "midstream.api",
    "load_config": "midstream.api",
    "mask_retrieved_tokens": "midstream.tools",
    "register": "midstream.agents",
    "register_tasks": "midstream.tasks",
    "rollout": "midstream.api",
    "rollout_async": "midstream.api",
    "tool": "midstream.tools",
    "train": "midstream.api",
    "train_async": "midstream.api",
    "tune": "midstream.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'midstream' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
