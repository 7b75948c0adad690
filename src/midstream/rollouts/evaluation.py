"""Greedy evaluation: one attempt at each task, at temperature 0, scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from midstream.agents.base import Score
from midstream.agents.config import FlowConfig
from midstream.agents.endpoint import AgentEndpoint
from midstream.core.types import Task, Trajectory
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts.attempts import groups_of
from midstream.rollouts.config import RolloutConfig
from midstream.rollouts.manager import AgentFlowManager
from midstream.rollouts.worker import AgentFlowWorker


async def evaluate_tasks(
    flow: FlowConfig,
    engines: Mapping[str, RoleEngine],
    tasks: Sequence[Task],
    score: Score,
    *,
    rollout: RolloutConfig | None = None,
    endpoint: AgentEndpoint | None = None,
    store: Store | None = None,
    label: str = "eval",
    channel: str = "eval",
    train_step: int | None = None,
    seed: int = 0,
    in_order: bool = False,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """One greedy, scored trajectory per task, in the order of `tasks`.

    `engines` are by module role; `policy` is required. `rollout` gives token limits, concurrency and the time limit (by
    default those of `RolloutConfig`); its temperature is ignored. `endpoint` is needed for black-box flows. With a
    `store` the trajectories are recorded there under `channel`; their uids begin with `channel` and `label`. Failed
    attempts are returned with their status; a wrong flow, role or tool raises `ConfigError`."""
    settings = rollout or RolloutConfig()
    worker = AgentFlowWorker(
        flow,
        engines,
        sampling=settings.sampling,
        store=store,
        score=score,
        timeout_s=settings.timeout_s,
        endpoint=endpoint,
    )
    prefix = f"{channel}-{label.replace(' ', '-')}"
    attempts = groups_of(tasks, 1, prefix=prefix, seed=seed, channel=channel, train_step=train_step)
    manager = AgentFlowManager(worker, concurrency=settings.concurrency, in_order=in_order)
    return await manager.run(attempts, temperature=0.0, on_done=on_done)
