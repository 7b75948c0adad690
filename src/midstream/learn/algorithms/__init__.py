"""Algorithms: each is a config with a method `advantages`, which computes the advantage of every turn, and a policy
loss.

The trainer treats all algorithms alike.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from midstream.learn.algorithms.grpo import GDPO, GRPO, DrGRPO, FlowGRPO, GiGPO, RoleGRPO, StepwiseGRPO
from midstream.learn.algorithms.ppo import PPO
from midstream.learn.algorithms.reinforce import (
    GPG,
    OPO,
    RLOO,
    MaxRL,
    Reinforce,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
    RoleBaseline,
)
from midstream.learn.algorithms.supervised import DPO, Distill, Imitate

AlgorithmConfig = Annotated[
    FlowGRPO
    | GRPO
    | DrGRPO
    | StepwiseGRPO
    | RoleGRPO
    | GiGPO
    | GDPO
    | RLOO
    | Reinforce
    | ReinforcePlusPlus
    | ReinforcePlusPlusBaseline
    | RoleBaseline
    | ReMax
    | OPO
    | MaxRL
    | GPG
    | PPO
    | Imitate
    | DPO
    | Distill,
    Field(discriminator="name"),
]
