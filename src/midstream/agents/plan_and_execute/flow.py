"""The flow `plan_and_execute`: a planner writes a plan, the durable executor runs it, and the results or a failure lead
to a revised plan or to the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.agents.base import AgentFlowBase, FlowSession
from midstream.agents.budget import AgentBudget, Spending
from midstream.agents.plan_and_execute.handlers import STEP_TIMEOUT_S, PlanHandlers
from midstream.agents.plan_and_execute.prompts import (
    RANK,
    REVIEW,
    answer_request,
    executor_results,
    plan_request,
    planner_instructions,
)
from midstream.agents.plan_and_execute.schedule import StepPolicy
from midstream.agents.plan_and_execute.steps import (
    MOST_STEPS,
    PlannedStep,
    Strategy,
    UnreadablePlan,
    compile_steps,
    kept_steps,
    read_steps,
    renamed,
    steps_of,
    steps_schema,
)
from midstream.agents.plan_journal import PlanJournal
from midstream.agents.registry import register
from midstream.agents.resume import restore_calls
from midstream.agents.scheduling.policy import ROLE
from midstream.core.config import Config
from midstream.core.errors import ConfigError, nearest
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Step
from midstream.plans import Context, Permanent, ReadyNode, RunStatus, SchedulerState
from midstream.plans.instances import PLANNER

Outcome = Literal["unfinished", "answered", "no_plan", "plan_failed", "rolled_back", "rollback_failed", "budget"]
"""How an attempt ended. `unfinished`: it failed, see its status and error. `no_plan`: no valid plan was written.
`plan_failed`: a step failed for good and no revised plan helped. `rolled_back`, `rollback_failed`: the same, and what
had been done was undone, or could not be. `budget`: a limit of the attempt was reached."""
_ENDS: Mapping[RunStatus, Outcome] = {
    RunStatus.SUCCEEDED: "answered",
    RunStatus.ROLLED_BACK: "rolled_back",
    RunStatus.ROLLBACK_FAILED: "rollback_failed",
}


class PlanAndExecuteSettings(Config):
    """`flow.settings` of the flow `plan_and_execute`."""

    strategy: Strategy = "chain"
    """Shape of the plans. `chain`: one step after another. `tree`: the planner proposes several chains, the verifier
    scores them, the best one runs, and the next best when it fails. `graph`: steps run when what they need is there,
    with joins."""
    branches: int = Field(default=3, ge=2)
    """Plans proposed under the strategy `tree`."""
    max_steps: int = Field(default=8, ge=1, le=MOST_STEPS)
    """Most steps of a plan, as the planner writes it."""
    max_repairs: int = Field(default=2, ge=0)
    """How often the planner is shown what is wrong with its plan, each time it writes one."""
    max_replans: int = Field(default=2, ge=0)
    """How often the plan is revised: after a step that failed for good, or after a review."""
    review: bool = False
    """Ask the verifier whether the results suffice when a plan has succeeded. If not, the plan is revised."""
    concurrency: int = Field(default=1, ge=1)
    """Most steps at the same time. Above 1 the order of calls, and so of the recorded steps, depends on timing."""
    choose: Literal["first", "role"] = "first"
    """Which step of a graph starts while more are ready than `concurrency` lets run. `first`: the one that has been
    ready longest. `role`: the role `scheduler` chooses among them (see `RolePolicy`)."""
    constrained: bool = False
    """Sample plans under their JSON schema, so that every one can be read, where the engine can."""
    instructions: str | None = None
    """System prompt of the planner instead of the built-in one; `{steps}` in it is replaced by how each step is
    written, `{tools}` by a list of the tools. A short one is cheaper to sample from; say in it that tool results are
    data."""
    undo: dict[str, str] = Field(default_factory=dict)
    """Tools that undo others, by name: `{book: cancel}`. When a plan fails for good, succeeded calls are undone, the
    last one first. The tool that undoes gets those arguments of the call that it has, and the result as `output`."""
    budget: AgentBudget = AgentBudget()
    """Limits of one attempt."""
    keep_plans: bool = False
    """Keep the journal of an attempt's plans when it has ended, for `midstream plan status` and `show`. Only attempts
    that can be resumed have a journal to keep."""

    @model_validator(mode="after")
    def _branches(self) -> PlanAndExecuteSettings:
        if self.strategy != "tree" and "branches" in self.model_fields_set:
            raise ValueError(f"branches applies to the strategy 'tree', not '{self.strategy}'")
        if self.strategy != "graph" and self.choose != "first":
            raise ValueError(f"choose applies to the strategy 'graph': the steps of a {self.strategy} have one order")
        return self


@register("plan_and_execute")
class PlanAndExecuteFlow(AgentFlowBase):
    """Planner, executor, verifier and generator around a durable plan."""

    settings = PlanAndExecuteSettings
    roles = ("planner", "executor", "verifier", "generator")
    by_rule = ("executor", "verifier", "generator", ROLE)

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, PlanAndExecuteSettings)
        self.chosen = self.config
        self.spending = Spending(self, self.chosen.budget)
        self.outcome: Outcome = "unfinished"
        self.stopped = ""
        """The limit that stopped the attempt."""
        self.plan: list[PlannedStep] = []
        """Steps of all plans that were executed."""
        self.planned: list[PlannedStep] = []
        """Steps of the plan that is executed."""
        self.states: dict[str, str] = {}
        """State of each step at the end of its plan."""
        self.results: dict[str, Any] = {}
        """What succeeded steps returned, by id."""
        self.revisions = 0
        self.planned_by: int | None = None
        """Index of the model call that wrote the latest plan."""
        self._round = 0
        self._branches: list[list[PlannedStep]] = []
        """Further plans of a tree, the best first."""
        self._handlers = PlanHandlers(self)

    @classmethod
    def roles_for(cls, settings: Config) -> tuple[str, ...]:
        assert isinstance(settings, PlanAndExecuteSettings)
        return (*cls.roles, ROLE) if settings.choose == "role" else cls.roles

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        self._check_undo()
        asks = self.chosen.choose == "role" and ROLE in self.session.role_engines
        policy = StepPolicy(self, self._choice_key) if asks else None
        journal = await PlanJournal.open(self.session, self._handlers.all, policy=policy)
        self._executor = journal.executor
        reason = ""
        while True:
            name = f"round-{self._round}"
            steps = await self._write_plan(name, self.plan, self.results, reason)
            if steps is None:
                self.outcome = "budget" if self.stopped else "plan_failed" if self.plan else "no_plan"
                break
            steps = renamed(steps, {step.id: step for step in self.plan})
            status = await self._execute(journal, name, steps) if steps else RunStatus.SUCCEEDED
            self.outcome = "budget" if self.stopped else _ENDS.get(status, "plan_failed")
            if self.outcome != "answered" or self.revisions >= self.chosen.max_replans:
                break
            if await self._suffices(name):
                break
            self.revisions, self._round = self.revisions + 1, self._round + 1
            reason = "the results do not answer the question yet"
        self.turns = len(self.plan)
        if self.outcome != "no_plan":
            self.answer = await self._answer()
        return len(self.steps)

    def _check_undo(self) -> None:
        known = [tool.name for tool in self.session.tools.tools]
        for name in (name for pair in self.chosen.undo.items() for name in pair):
            if name not in known:
                raise ConfigError(f"flow.settings.undo names the tool '{name}'", nearest(name, known))

    def key(self, ctx: Context, what: str = "") -> str:
        """Name of a node's calls within the attempt: the same after a restart."""
        place = ctx.key.removeprefix(f"{ctx.run}/")
        return f"round-{self._round}/{place}" + (f"/{what}" if what else "")

    def _choice_key(self, state: SchedulerState, feasible: Sequence[ReadyNode]) -> str:
        """Name of the call that chooses among `feasible`: the same after a restart, and no two choices have it."""
        parts = ([node.path for node in feasible], sorted(state.running), [str(state.succeeded)])
        return f"round-{self._round}/start/" + "/".join("+".join(part) for part in parts)

    async def replan(
        self, ctx: Context, plan: Mapping[str, Any], failed: str, error: str, states: Mapping[str, str]
    ) -> dict[str, Any]:
        """Write the next revision of a plan in which a step failed for good."""
        kept = kept_steps(plan, states)
        results = {**self.results, **await self._executor.outputs(ctx.run)}
        number = int(ctx.path.removeprefix(PLANNER))
        if self._round == 0 and number <= len(self._branches):
            steps: list[PlannedStep] | None = self._branches[number - 1]
        else:
            reason = f"the step '{failed}' failed: {error}"
            steps = await self._write_plan(self.key(ctx), [*self.plan, *kept], results, reason)
        if steps is None:
            raise Permanent("the planner wrote no valid plan")
        new = renamed(steps, {step.id: step for step in (*self.plan, *kept)})
        if not new:
            raise Permanent("the planner wrote nothing new")
        return self._compiled(new, kept)

    def _compiled(self, steps: Sequence[PlannedStep], kept: Sequence[PlannedStep] = ()) -> dict[str, Any]:
        self.planned = [*kept, *steps]
        left = max(self.chosen.max_replans - self.revisions, 0)
        return compile_steps(
            steps,
            self.chosen.strategy,
            kept=kept,
            earlier=self.results,
            undo=self.chosen.undo,
            on_failure="compensate" if self.chosen.undo else "stop",
            max_concurrency=self.chosen.concurrency,
            replan={"handler": "replan", "timeout_s": STEP_TIMEOUT_S, "retry": {"attempts": 1, "corrections": 0}},
            budgets={"replans": left},
        )

    async def _execute(self, journal: PlanJournal, name: str, steps: Sequence[PlannedStep]) -> RunStatus:
        """Run a plan to its end, and take over its results."""
        executor, uid = journal.executor, await journal.run_uid(name, kept=self.chosen.keep_plans)
        result = await executor.run(self._compiled(steps), uid=uid)
        if self._handlers.raised is not None:
            await self._forget(journal, uid)
            raise self._handlers.raised
        view = await executor.status(uid)
        executed = steps_of(view.plan.model_dump(mode="json", exclude_defaults=True))
        self.plan += executed
        self.states |= {step.id: str(view.nodes[step.id].state) for step in executed if step.id in view.nodes}
        self.results |= await executor.outputs(uid)
        self.revisions += view.run.revision
        await self._forget(journal, uid)
        restore_calls(self.session)
        return result.status

    async def _forget(self, journal: PlanJournal, uid: str) -> None:
        if not self.chosen.keep_plans:
            await journal.executor.delete(uid)

    async def _write_plan(
        self, key: str, kept: Sequence[PlannedStep], known: Mapping[str, Any], reason: str
    ) -> list[PlannedStep] | None:
        """Let the planner write steps; None if none of its plans can be read, or a limit is reached."""
        ask = plan_request(self.task.question, kept, known, reason, self.chosen.strategy)
        if self.chosen.strategy != "tree":
            return await self._proposal(f"{key}/plan", ask, kept)
        found: list[list[PlannedStep]] = []
        for branch in range(self.chosen.branches):
            steps = await self._proposal(f"{key}/branch-{branch}", ask, kept)
            if steps is not None and steps not in found:
                found.append(steps)
        scores = [await self._score(f"{key}/score-{place}", steps) for place, steps in enumerate(found)]
        order = sorted(range(len(found)), key=lambda place: -scores[place])
        if not order:
            return None
        if not self._branches and not reason:
            self._branches = [found[place] for place in order[1:]]
        return found[order[0]]

    async def _proposal(self, key: str, ask: str, kept: Sequence[PlannedStep]) -> list[PlannedStep] | None:
        session, chosen = self.session, self.chosen
        tools = {tool.name: tool for tool in session.tools.shown(self.task.question)}
        tasks = "executor" in session.role_engines
        cards = session.tools.cards(self.task.question)
        system = planner_instructions(cards, chosen.strategy, tasks, chosen.max_steps, chosen.instructions)
        messages: list[Message] = [{"role": "system", "content": system}, {"role": "user", "content": ask}]
        constraint = None
        if chosen.constrained:
            schema = steps_schema(list(tools.values()), chosen.strategy, tasks, chosen.max_steps)
            constraint = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
        for repair in range(chosen.max_repairs + 1):
            if limit := self.spending.exhausted:
                self.stopped = limit
                return None
            step = await self.chat(messages, role="planner", response_format=constraint, key=f"{key}-{repair}")
            try:
                steps = read_steps(
                    step.content,
                    tools,
                    strategy=chosen.strategy,
                    tasks=tasks,
                    most=chosen.max_steps,
                    done=[one.id for one in kept],
                )
            except UnreadablePlan as error:
                session.recorder.annotate(step.step_index, parsed=False, parse_error=str(error))
                messages += [
                    {"role": "assistant", "content": step.text},
                    {"role": "user", "content": f"Error: {error}. Write the whole plan again."},
                ]
                continue
            self.planned_by = step.step_index
            session.recorder.annotate(step.step_index, parsed=True, plan=[one.as_json() for one in steps])
            return steps
        return None

    async def _score(self, key: str, steps: Sequence[PlannedStep]) -> float:
        """The verifier's score of a proposed plan, 0 to 10; equal for all without a verifier."""
        step = await self._ask_verifier(
            key, RANK.format(steps=json.dumps([one.as_json() for one in steps], ensure_ascii=False))
        )
        if step is None:
            return 0.0
        digits = "".join(character if character.isdigit() else " " for character in step.text).split()
        score = min(float(digits[0]), 10.0) if digits else 0.0
        self.session.recorder.annotate(step.step_index, score=score, parsed=bool(digits))
        return score

    async def _suffices(self, key: str) -> bool:
        if not self.chosen.review:
            return True
        step = await self._ask_verifier(f"{key}/review", REVIEW.format(results=executor_results(self.results)))
        if step is None:
            return True
        word = step.text.strip().lower()
        self.session.recorder.annotate(
            step.step_index, verdict=word.startswith("yes"), parsed=word.startswith(("yes", "no"))
        )
        return not word.startswith("no")

    async def _ask_verifier(self, key: str, ask: str) -> Step | None:
        if "verifier" not in self.session.role_engines or self.spending.exhausted:
            return None
        content = f"Question: {self.task.question}\n{ask}"
        return await self.chat([{"role": "user", "content": content}], role="verifier", key=key)

    async def _answer(self) -> str | None:
        """The generator's answer; by rule the last result."""
        if "generator" in self.session.role_engines:
            messages = [{"role": "user", "content": answer_request(self.task.question, self.results)}]
            return (await self.chat(messages, role="generator", key="answer")).content.strip()
        last = [str(self.results[step.id]) for step in self.plan if step.id in self.results]
        return last[-1] if last else None

    def metadata(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "limit": self.stopped,
            "plan": [step.as_json() for step in self.plan],
            "states": self.states,
            "revisions": self.revisions,
        }
