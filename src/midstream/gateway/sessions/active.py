"""`ActiveTrajectory`: an open trajectory in memory. Also the errors about trajectories that are not open here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from midstream.core import clock
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason, Status, Step, Task, Trajectory
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.http.errors import ApiError
from midstream.gateway.sessions.answer import answer_of
from midstream.gateway.sessions.locks import Locks
from midstream.gateway.sessions.sdk_retries import SdkRetries
from midstream.record.recorder import Recorder, RoleEngine
from midstream.store.servers import BEAT_S, DEAD_AFTER_S


@dataclass(frozen=True, slots=True)
class ReportedEnd:
    """The outcome that an agent reported when it completed its trajectory."""

    answer: str | None
    reward: float | None
    rewards: Mapping[str, float]
    error: str


@dataclass(slots=True)
class ActiveTrajectory:
    """An open trajectory. `prompt_uid` is its group; the limits of `key` apply to its calls.

    A rollout attaches its own trajectories: `role_engines` are the roles its agent may call, `sampling` overrides what
    the agent asks for, and the rollout reads the outcome from `reported`."""

    uid: str
    prompt_uid: str
    channel: str
    task: Task
    metadata: dict[str, Any]
    recorder: Recorder
    group_size: int = 1
    key: str | None = None
    began: float = field(default_factory=clock.monotonic)
    touched: float = field(default_factory=clock.monotonic)
    in_flight: int = 0
    ended: Status | None = None
    end_reason: str = ""
    role_engines: Mapping[str, RoleEngine] = field(default_factory=dict[str, RoleEngine])
    sampling: Mapping[str, SamplingParams] = field(default_factory=dict[str, SamplingParams])
    reported: ReportedEnd | None = None
    retries: SdkRetries = field(default_factory=SdkRetries)
    answering: Locks = field(default_factory=Locks)
    """By idempotency key: held while answers are made, so that a concurrent repetition waits for them."""

    def trajectory(self, tokenizer: ChatTokenizer, status: Status) -> Trajectory:
        """Return the recorded trajectory with `status`. The answer is that of the last uninterrupted step."""
        steps = self.recorder.recorded()
        whole = [step for step in steps if step.finish_reason != FinishReason.INTERRUPTED]
        return Trajectory(
            uid=self.uid,
            prompt_uid=self.prompt_uid,
            task=self.task,
            steps=steps,
            answer=answer_of(whole[-1], tokenizer).reply.content if whole else None,
            turns=len(steps),
            status=status,
            metadata=self.metadata,
        )

    def touch(self) -> None:
        self.touched = clock.monotonic()

    def recorded(self, key: str) -> dict[int, Step]:
        """Return the steps of an idempotency key by choice. Interrupted ones are no answers."""
        steps = [step for step in self.recorder.finished() if step.metadata.get("idempotency_key") == key]
        return {s.metadata.get("choice", 0): s for s in steps if s.finish_reason != FinishReason.INTERRUPTED}

    def session(self) -> dict[str, Any]:
        """Return what the store keeps so that the trajectory can continue after a restart."""
        return {"metadata": self.metadata, "group_size": self.group_size, "key": self.key}


def ended_error(active: ActiveTrajectory) -> ApiError:
    return trajectory_ended(active.uid, active.ended or Status.COMPLETED, active.end_reason)


def trajectory_ended(uid: str, status: Status, reason: str) -> ApiError:
    because = f": {reason}" if reason else ""
    return ApiError(409, f"trajectory '{uid}' has ended ({status}{because}); open another one", code="trajectory_ended")


def held_by_another_gateway(uid: str, name: str | None) -> ApiError:
    """Return the error for a trajectory of another gateway; without a name, of one that died and is about to be taken
    over."""
    where = f"the gateway '{name}', which shares this store" if name else "a gateway that is gone"
    return ApiError(
        503,
        f"trajectory '{uid}' belongs to {where}; send its calls there. It continues here once that gateway has been "
        f"silent for {DEAD_AFTER_S:g} s",
        code="held_elsewhere",
        retry_after_s=BEAT_S,
    )
