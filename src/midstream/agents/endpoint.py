"""The HTTP endpoint of a black-box agent: the address it calls, and how it completed its trajectory.

The gateway implements `AgentEndpoint`; `api` passes it to the code that runs flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.record.recorder import Recorder, RoleEngine


@dataclass(slots=True)
class EndpointAddress:
    """URL and keys of a trajectory's model.

    OpenAI clients use `base_url` and `token` as their API key; Anthropic clients use `root_url` and the same token.
    `owner_token` authorises the flow to grade the trajectory and is never given to the agent. The other fields hold the
    result that the agent completed the trajectory with."""

    base_url: str
    token: str
    model: str
    owner_token: str
    completed: bool = False
    last_reply: str | None = None
    """The model's last reply, when the steps are recorded by a remote gateway."""
    answer: str | None = None
    reward: float | None = None
    rewards: Mapping[str, float] = field(default_factory=dict[str, float])
    error: str = ""

    @property
    def root_url(self) -> str:
        return self.base_url.removesuffix("/v1")


class AgentEndpoint(Protocol):
    """Accepts the model calls of trajectories over HTTP."""

    def admit(
        self,
        recorder: Recorder,
        task: Task,
        role_engines: Mapping[str, RoleEngine],
        sampling: Mapping[str, SamplingParams],
    ) -> AbstractAsyncContextManager[EndpointAddress]:
        """While the context is open, calls to the address are answered by `role_engines` and recorded by `recorder`.

        An agent may use a role as its model name. When the context closes, the address holds the agent's result."""
        ...
