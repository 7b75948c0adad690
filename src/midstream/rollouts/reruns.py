"""Re-runs: repeats an attempt with one module role as a no-op, to measure the role's contribution.

The role replies with a fixed text. A call of another role with an unchanged prompt gets the recorded reply, so actions
that the role did not influence stay the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from midstream.core.types import FinishReason, Step, Trajectory
from midstream.engines.base import Completion, Engine, Request
from midstream.engines.chat import ChatTokenizer
from midstream.record.recorder import RoleEngine
from midstream.record.replay import completion_of
from midstream.rollouts.attempts import Attempt, Rerun

CHANNEL = "rerun"


def rerun_of(attempt: Attempt, original: Trajectory, role: str, reply: str = "") -> Attempt:
    """Return the attempt that repeats `attempt`, whose trajectory is `original`, with `role` as a no-op."""
    rerun = Rerun(original, role, reply)
    return replace(attempt, uid=f"{attempt.uid}-without-{role}", channel=CHANNEL, rerun=rerun, branch=None)


def trained_roles(trajectory: Trajectory) -> list[str]:
    """Return the roles whose replies are trained on, in the order in which they first acted."""
    return list(dict.fromkeys(step.role for step in trajectory.steps if step.trainable))


def rerun_engines(
    role_engines: Mapping[str, RoleEngine], rerun: Rerun, answered: Sequence[Step] = ()
) -> dict[str, RoleEngine]:
    """Return the engines of a re-run, of which the calls of the steps `answered` were made before its process died.
    Nothing in it is trained on."""
    engines: dict[str, RoleEngine] = {}
    for role, role_engine in role_engines.items():
        engine: Engine = (
            NoOpEngine(role_engine.engine, role_engine.tokenizer, rerun.reply)
            if role == rerun.role
            else RecordedEngine(role_engine.engine, _of(role, rerun.original.steps), _of(role, answered))
        )
        engines[role] = replace(role_engine, engine=engine, trainable=False)
    return engines


def _of(role: str, steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.role == role and step.finish_reason != FinishReason.INTERRUPTED]


class EngineWrapper:
    """Replaces `engine` for calls of one trajectory. `join` and `leave` do nothing: the trajectory joins the engine."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine

    @property
    def policy_version(self) -> int:
        return self._engine.policy_version

    @property
    def adapter(self) -> str:
        return getattr(self._engine, "adapter", "")

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...


class NoOpEngine(EngineWrapper):
    """Replies with the same text to every call, whatever its constraint."""

    def __init__(self, engine: Engine, tokenizer: ChatTokenizer | None, reply: str) -> None:
        super().__init__(engine)
        self._text = reply
        self._ids = () if tokenizer is None else _closed(tokenizer, reply)

    async def generate(self, request: Request) -> Completion:
        return Completion(
            ids=self._ids,
            log_probs=(0.0,) * len(self._ids),
            text=self._text,
            finish_reason=FinishReason.STOP,
            policy_version=self.policy_version,
            adapter=request.adapter or self.adapter,
        )


class RecordedEngine(EngineWrapper):
    """Repeats the replies of `steps` to calls with the same prompt; other calls go to `engine`.

    Several steps with the same prompt are repeated in order, and the last one from then on. The replies to `answered`
    calls of a resumed re-run come from its own record, so they count as repeated."""

    def __init__(self, engine: Engine, steps: Sequence[Step], answered: Sequence[Step] = ()) -> None:
        super().__init__(engine)
        self._replies: defaultdict[str, list[Step]] = defaultdict(list)
        for step in steps:
            self._replies[call_key(step)].append(step)
        for step in answered:
            self._next(call_key(step))

    def _next(self, key: str) -> Step | None:
        known = self._replies.get(key)
        if not known:
            return None
        return known.pop(0) if len(known) > 1 else known[0]

    async def generate(self, request: Request) -> Completion:
        step = self._next(call_key(request))
        if step is None:
            return await self._engine.generate(request)
        return completion_of(step)


@lru_cache(maxsize=8)
def _closed(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a whole reply. Cached: finding its end renders the chat template, and a step has many re-runs."""
    return (*tokenizer.encode(text), tokenizer.closing_id())


def call_key(asked: Step | Request) -> str:
    """Return text that is equal for calls with the same prompt."""
    return repr(asked.prompt_ids or asked.messages)
