"""Records the calls that engines answer, independently of the recorder, the flow and the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from midstream.engines.base import Completion, Engine, Request
from midstream.learn.model.log_probs import TokenSequence
from midstream.record.recorder import RoleEngine


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A model call that an engine answered."""

    engine: str
    request: Request
    completion: Completion

    @property
    def role(self) -> str:
        return self.request.role

    @property
    def sequence(self) -> TokenSequence:
        """What was sampled, at the requested temperature (1 if greedy), over the tokens that the constraint allowed."""
        request, completion = self.request, self.completion
        return TokenSequence(
            request.prompt_ids,
            completion.ids,
            request.sampling.temperature or 1.0,
            request.constraint if completion.over_allowed else None,
            completion.adapter,
        )


class RecordingEngine:
    """Passes calls on to another engine unchanged, and records them with their completions."""

    def __init__(self, engine: Engine, calls: list[RecordedCall]) -> None:
        self.name, self._engine, self._calls = engine.name, engine, calls

    @property
    def policy_version(self) -> int:
        return self._engine.policy_version

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    async def generate(self, request: Request) -> Completion:
        completion = await self._engine.generate(request)
        self._calls.append(RecordedCall(self.name, request, completion))
        return completion

    def join(self, session: str) -> None:
        self._engine.join(session)

    def leave(self, session: str) -> None:
        self._engine.leave(session)


def recorded_calls(role_engines: Mapping[str, RoleEngine], calls: list[RecordedCall]) -> dict[str, RoleEngine]:
    """Return `role_engines` with recording engines: each answered call is appended to `calls`."""
    engines = {
        id(role_engine.engine): RecordingEngine(role_engine.engine, calls) for role_engine in role_engines.values()
    }
    return {
        role: replace(role_engine, engine=engines[id(role_engine.engine)]) for role, role_engine in role_engines.items()
    }
