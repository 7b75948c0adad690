"""The door that a black-box agent's model calls come in by: an address to give it, and what it said when it was done.

The gateway makes such doors. Here is only what a flow needs of one, so that flows need not know of HTTP servers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from midstream.core.sampling import SamplingParams
from midstream.core.types import Task
from midstream.record.recorder import Recorder, Voice


@dataclass(slots=True)
class Address:
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


class Door(Protocol):
    """Lets one trajectory's calls in."""

    def admit(
        self, recorder: Recorder, task: Task, voices: Mapping[str, Voice], sampling: Mapping[str, SamplingParams]
    ) -> AbstractAsyncContextManager[Address]:
        """Inside, calls to the address are recorded by `recorder`. An agent may ask for a role as its model."""
        ...


def default_door() -> Door:
    """The gateway's own, in this process, on loopback."""
    return importlib.import_module("midstream.gateway.inside").Inside()
