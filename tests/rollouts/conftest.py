"""Workers with scripted models, and a gateway that records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.gateway.conftest import start

from midstream.agents.config import FlowConfig, RoleConfig
from midstream.core.errors import EngineError
from midstream.core.types import FinishReason, Task
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import RoleEngine
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig

__all__ = ["attempt", "by_role_fixture", "make_worker", "start"]

Says = Callable[[Request], str | Exception]


class ScriptedEngine:
    """Returns canned replies; raises those that are exceptions."""

    policy_version, context_length, name = 0, 1 << 20, "scripted"

    def __init__(self, tokenizer: ChatTokenizer, says: Says) -> None:
        self.tokenizer, self.says = tokenizer, says
        self.heard: list[Request] = []

    async def generate(self, request: Request) -> Completion:
        self.heard.append(request)
        said = self.says(request)
        if isinstance(said, Exception):
            raise said
        ids = (*self.tokenizer.encode(said), min(self.tokenizer.end_ids))
        return Completion(ids=ids, log_probs=(-0.5,) * len(ids), text=said, finish_reason=FinishReason.STOP)

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


@pytest.fixture(name="by_role")
def by_role_fixture() -> Callable[..., Says]:
    return by_role


def by_role(**texts: str | list[str] | Exception) -> Says:
    """Each role replies with its texts in turn, cyclically, per trajectory."""
    turns: dict[tuple[str, str], int] = {}

    def says(request: Request) -> str | Exception:
        given = texts.get(request.role)
        if given is None:
            return EngineError(f"nobody told {request.role} what to say")
        if not isinstance(given, list):
            return given
        place = turns.get((request.session, request.role), 0)
        turns[(request.session, request.role)] = place + 1
        return given[place % len(given)]

    return says


MakeWorker = Callable[..., AgentFlowWorker]


@pytest.fixture
def make_worker(tiny_tokenizer: ChatTokenizer) -> MakeWorker:
    """Make a worker with one scripted engine; `rules` names roles without an engine, other settings are the flow's."""

    def make(
        says: Says,
        name: str = "agentflow",
        *,
        rules: tuple[str, ...] = ("analysis", "executor", "verifier"),
        roles: Mapping[str, RoleConfig] | None = None,
        role_engines: Mapping[str, RoleEngine] | None = None,
        worker: Mapping[str, Any] | None = None,
        **flow: Any,
    ) -> AgentFlowWorker:
        if name == "agentflow":
            flow.setdefault("settings", {"notation": "compact", "fields": []})
            flow.setdefault("tools", ("calculator", "echo"))
            flow["roles"] = {**{role: RoleConfig(engine="rules") for role in rules}, **(roles or {})}
        elif roles:
            flow["roles"] = dict(roles)
        policy = RoleEngine(ScriptedEngine(tiny_tokenizer, says), tiny_tokenizer, True)
        return AgentFlowWorker(
            FlowConfig(name=name, **flow),
            {"policy": policy, **(role_engines or {})},
            sampling=SamplingConfig(max_tokens=8, temperature=1.0),
            **(worker or {}),
        )

    return make


@pytest.fixture
def attempt() -> Callable[..., Attempt]:
    """Make an attempt at a question."""

    def make(question: str = "What is 2 * 3?", uid: str = "u", answer: Any = "6", **metadata: Any) -> Attempt:
        task = Task(id=f"task-{uid}", prompt=question, answer=answer, metadata=metadata)
        return Attempt(task=task, uid=uid, prompt_uid=f"p-{uid}", seed=1)

    return make
