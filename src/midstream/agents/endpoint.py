"""The HTTP endpoint of a black-box agent: an address to give to it, and what it reported at its end.

The gateway implements it. Flows need only these types, and so know nothing of HTTP servers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.record.recorder import Recorder, RoleEngine


@dataclass(slots=True)
class EndpointAddress:
    """Where an agent finds its model. `base_url` is for OpenAI's clients, and `token` their API key; Anthropic's take
    `root_url` and the same token. `owner_token` is the flow's own: it grades the trajectory, and never goes to the
    agent. What was said on completing the trajectory stands in the other fields."""

    base_url: str
    token: str
    model: str
    owner_token: str
    completed: bool = False
    last_reply: str | None = None
    """What the model said last, where the steps are not here."""
    answer: str | None = None
    reward: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict[str, float])
    error: str = ""

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")


class AgentEndpoint(Protocol):
    """Lets one trajectory's calls in."""

    def admit(
        self,
        recorder: Recorder,
        task: Task,
        role_engines: Mapping[str, RoleEngine],
        sampling: Mapping[str, SamplingParams],
    ) -> AbstractAsyncContextManager[EndpointAddress]:
        """Inside, calls to the address are recorded by `recorder`. An agent may ask for a role as its model."""
        ...


def default_endpoint() -> AgentEndpoint:
    """The gateway's own, in this process, on loopback."""
    return importlib.import_module("midstream.gateway.in_process").InProcessGateway()
