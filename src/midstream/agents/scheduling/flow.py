"""`plan_scheduler`: runs the jobs of a task as a plan in virtual time; a role chooses which job starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.plan_journal import PlanJournal, open_executor
from midstream.agents.registry import register
from midstream.agents.scheduling.policy import ROLE, RolePolicy
from midstream.core.config import Config
from midstream.core.errors import ConfigError, RunError
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Message
from midstream.plans import (
    Choice,
    ReadyNode,
    RunStatus,
    SchedulerState,
    SchedulingPolicy,
    VirtualTime,
    handler,
    uniform_policy,
)
from midstream.tasks.schedule import Instance


class SchedulerSettings(Config):
    """Settings of `plan_scheduler`."""

    choose: Literal["role", "random", "first", "longest"] = "role"
    """Who chooses: the role `scheduler`, or for comparisons chance, the order in which jobs became ready, or the rule
    that starts the job with the most hours behind it."""
    tell: Literal["hours", "names"] = "hours"
    """What the role sees of each job that can start: its hours and those of the longest chain behind it (or until it is
    due), or only its name, so that hours must be learned from experience."""
    journal: str | None = None
    """Database in which the runs are kept, for `midstream plan show`; the metadata of a trajectory has the uid of its
    `run`. Without one, runs are deleted when they end."""


@register("plan_scheduler")
class PlanSchedulerFlow(AgentFlowBase):
    """Works on tasks of the sets `schedule`, `schedule_due` and `schedule_kitchen`. The answer is the cost of the
    schedule; the reward component `schedule` compares it with the least and the greatest cost."""

    settings = SchedulerSettings
    roles = (ROLE,)
    by_rule = (ROLE,)

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, SchedulerSettings)
        self._settings = self.config
        self._time = VirtualTime()
        self._ends: dict[str, float] = {}
        self._choices: list[dict[str, Any]] = []
        self._cost: float | None = None
        self._run: str | None = None

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        settings = self._settings
        self._instance = instance = self._read_instance()

        @handler("work", effects="none")
        async def work(name: str, duration: float) -> None:
            await self._time.sleep(duration)
            self._ends[name] = self._time.now

        plan = {
            "name": self.task.kind or "schedule",
            "limits": dict(instance.limits),
            "nodes": [
                {
                    "id": job.name,
                    "handler": "work",
                    "args": {"name": job.name, "duration": job.duration},
                    "after": list(job.after),
                    "resources": dict(job.needs),
                }
                for job in instance.jobs
            ],
        }
        policy, on_wait = _Noted(self._policy(), self._choices), self._time.on_wait
        if settings.journal is None:
            journal = await PlanJournal.temporary(self.session, [work], policy=policy, on_wait=on_wait)
            result = await journal.executor.run(plan, uid=await journal.run_uid("schedule"))
        else:
            executor = await open_executor(
                self.session, [work], policy=policy, on_wait=on_wait, journal=settings.journal
            )
            result = await executor.run(plan)
            self._run = result.uid
        if result.status is not RunStatus.SUCCEEDED:
            raise RunError(f"the plan of task '{self.task.id}' ended as {result.status}: {result.error}")
        self._cost = instance.cost(self._ends)
        self.answer = f"{self._cost:g}"
        self.turns = len(self._choices)
        return len(self.steps)

    def metadata(self) -> dict[str, Any]:
        kept = {"run": self._run} if self._run else {}
        return {"schedule": {"cost": self._cost, "ends": dict(self._ends), "choices": self._choices, **kept}}

    def _read_instance(self) -> Instance:
        try:
            return Instance.of(self.task.metadata["schedule"])
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"the task '{self.task.id}' has no jobs to schedule ({type(error).__name__}: {error})",
                "use plan_scheduler with tasks of the set schedule, schedule_due or schedule_kitchen",
            ) from None

    def _policy(self) -> SchedulingPolicy:
        if self._settings.choose == "random":
            return uniform_policy(derive_seed("schedule", self.session.recorder.trajectory_uid))
        if self._settings.choose == "longest":
            to_end = self._instance.to_end()
            return _First(lambda node: -to_end[node.path], "longest")
        if self._settings.choose == "first" or ROLE not in self.session.role_engines:
            return _First()
        return RolePolicy(self.chat, self._messages)

    def _messages(self, state: SchedulerState, feasible: Sequence[ReadyNode]) -> list[Message]:
        if self._settings.tell == "names":
            names = ", ".join(node.path for node in feasible)
            return [{"role": "user", "content": f"Start one: {names}"}]
        jobs, to_end = {job.name: job for job in self._instance.jobs}, self._instance.to_end()
        lines: list[str] = []
        for node in feasible:
            job = jobs[node.path]
            last = f"to the end {to_end[job.name]}" if job.due is None else f"due in {job.due - self._time.now:g}"
            lines.append(f"{job.name}: {job.duration} h, {last}")
        return [{"role": "user", "content": "Start one:\n" + "\n".join(lines)}]


class _First:
    """Starts the feasible node with the lowest `key`, of equals the one that became ready first."""

    def __init__(self, key: Callable[[ReadyNode], float] = lambda node: 0.0, name: str = "first") -> None:
        self.name, self._key = name, key

    async def choose(self, state: SchedulerState) -> Choice:
        feasible = [at for at, can_start in enumerate(state.feasible) if can_start]
        return Choice(min(feasible, key=lambda at: self._key(state.ready[at])), 0.0)


class _Noted:
    """Notes the choices of a policy between several nodes."""

    def __init__(self, policy: SchedulingPolicy, choices: list[dict[str, Any]]) -> None:
        self.name, self._policy, self._choices = policy.name, policy, choices

    async def choose(self, state: SchedulerState) -> Choice:
        choice = await self._policy.choose(state)
        feasible = [node.path for node, can_start in zip(state.ready, state.feasible, strict=True) if can_start]
        if len(feasible) > 1:
            made_by = dict(choice.metadata or {})
            one = {"feasible": feasible, "started": state.ready[choice.index].path, "log_prob": choice.log_prob}
            self._choices.append({**one, **{key: value for key, value in made_by.items() if key != "trajectory"}})
        return choice
