"""Durable execution of plans: graphs of nodes that survive crashes, are compensated when they fail, and ask people.

A plan is data (`Plan`); its nodes call handlers (`@handler`); `AgentExecutor` runs it on a database. The journal holds
every state change before it is acted on (`journal.py`).
"""

from midstream.plans.context import Context, Question
from midstream.plans.errors import Correctable, Fatal, HandlersMissing, Permanent, PlanError, RunHeld, Transient
from midstream.plans.executor import AgentExecutor
from midstream.plans.handlers import NOT_DONE, UNKNOWN, Finding, Handler, Handlers, done, handler
from midstream.plans.plan import Node, Plan, load_plan
from midstream.plans.runner import OnWait
from midstream.plans.scheduling import Choice, ReadyNode, SchedulerState, SchedulingPolicy, ScoredPolicy, uniform_policy
from midstream.plans.states import NodeState, RunStatus
from midstream.plans.views import OpenQuestion, RunResult, RunView
from midstream.plans.virtual_time import VirtualTime

__all__ = [
    "NOT_DONE",
    "UNKNOWN",
    "AgentExecutor",
    "Choice",
    "Context",
    "Correctable",
    "Fatal",
    "Finding",
    "Handler",
    "Handlers",
    "HandlersMissing",
    "Node",
    "NodeState",
    "OnWait",
    "OpenQuestion",
    "Permanent",
    "Plan",
    "PlanError",
    "Question",
    "ReadyNode",
    "RunHeld",
    "RunResult",
    "RunStatus",
    "RunView",
    "SchedulerState",
    "SchedulingPolicy",
    "ScoredPolicy",
    "Transient",
    "VirtualTime",
    "done",
    "handler",
    "load_plan",
    "uniform_policy",
]
