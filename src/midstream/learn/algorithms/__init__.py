"""Algorithms: each a short module with its config, whose `advantages` turns rewards by group into advantages by group.

The trainer does not know which one it runs.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from midstream.learn.algorithms.grpo import GRPO, FlowGRPO
from midstream.learn.algorithms.reinforce import Reinforce

AlgorithmConfig = Annotated[FlowGRPO | GRPO | Reinforce, Field(discriminator="name")]
