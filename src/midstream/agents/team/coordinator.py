"""`coordinator`: a manager that gives tasks to members by editing a plan, which the durable executor runs.

The manager never talks to a member. Each of its replies is an edit: new tasks with their dependencies, or the answer. A
checked edit becomes a revision of the plan, whose nodes are the turns of the members and of the manager. Members see
their task and the results it depends on; the manager sees states and results.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from midstream.agents.base import FlowSession
from midstream.agents.plan_journal import PlanJournal
from midstream.agents.registry import register
from midstream.agents.team.actions import UnreadableReply
from midstream.agents.team.constraints import Replies, edit_schema
from midstream.agents.team.edits import EXAMPLE, FINISH, FINISH_FROM, Edit, TeamTask, plan_of, read_edit, shown_tasks
from midstream.agents.team.members import Member, TeamFlow, TeamSettings, roster
from midstream.core import clock
from midstream.core.errors import MidstreamError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Message
from midstream.plans import AgentExecutor, Context, Fatal, Permanent, PlanError
from midstream.plans.errors import HandlerError
from midstream.plans.handlers import Handler, make_handler
from midstream.tools.marking import RULE, marked_text

T = TypeVar("T")
Outcome = Literal["running", "answered", "max_rounds", "unreadable", "plan_failed"]
"""How an attempt ended. `max_rounds`: the manager used up its turns. `unreadable`: it wrote no valid edit in
`max_errors` + 1 replies; an edit that repeats a task is not valid. `plan_failed`: the plan ended otherwise, as when a
node ran out of time."""
MANAGER = "manager"
TIMEOUT_S = 3600.0
"""Limit of one node; `rollout.timeout_s` limits the attempt."""
POLL_S = 0.001


class CoordinatorSettings(TeamSettings):
    """`flow.settings` of the flow `coordinator`."""

    instructions: str = "You lead a team. Give tasks to its members until the task of the user is done."
    """Beginning of the manager's system prompt."""
    max_rounds: int = Field(default=4, ge=1)
    """Most turns of the manager. The last one can only end."""
    max_tasks: int = Field(default=12, ge=1)
    """Most tasks of an attempt."""
    max_errors: int = Field(default=2, ge=0)
    """Most corrections of an invalid edit in one turn of the manager."""
    own_answer: bool = True
    """Let the manager write the answer itself. False: the answer is the result of a task, unless none has succeeded
    and no more can be added."""
    concurrency: int = Field(default=1, ge=1)
    """Most tasks at the same time. Above 1 the order of the recorded steps depends on timing."""

    @model_validator(mode="after")
    def _no_second_manager(self) -> CoordinatorSettings:
        if MANAGER in self.members:
            raise ValueError(f"'{MANAGER}' is the role of the coordinator; call the member otherwise")
        return self


@register("coordinator")
class CoordinatorFlow(TeamFlow):
    """A manager and the members it gives tasks to."""

    settings = CoordinatorSettings
    leads = (MANAGER,)

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(session, config)
        assert isinstance(self.config, CoordinatorSettings)
        self.chosen = self.config
        self.tasks: dict[str, TeamTask] = {}
        self.outcome: Outcome = "running"
        self._raised: MidstreamError | None = None
        self._executor: AgentExecutor
        self._messages: list[Message] = [{"role": "system", "content": self._instructions()}]

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        # An attempt that is resumed makes its plan again: its calls are answered from the record, by their keys.
        journal = await PlanJournal.temporary(self.session, self._handlers())
        self._executor = journal.executor
        await self._executor.run(plan_of([], 1, self.chosen.concurrency), uid=await journal.run_uid("team"))
        if self._raised is not None:
            raise self._raised
        if self.outcome == "running":
            self.outcome = "plan_failed"
        return len(self.steps)

    def _handlers(self) -> list[Handler]:
        async def manage(ctx: Context, turn: int) -> str:
            return await self._fatal_if_foreign(self._manage(ctx, turn))

        async def member(ctx: Context, task: str, given: dict[str, Any]) -> str:
            return await self._fatal_if_foreign(self._work(self.tasks[task], given))

        return [make_handler(one, one.__name__, effects="idempotent", timeout_s=TIMEOUT_S) for one in (manage, member)]

    async def _fatal_if_foreign(self, work: Awaitable[T]) -> T:
        """Let an error that is nobody's work, such as an engine that does not answer, end the attempt."""
        try:
            return await work
        except HandlerError:
            raise
        except MidstreamError as error:
            self._raised = self._raised or error
            raise Fatal(str(error)) from error

    async def _manage(self, ctx: Context, turn: int) -> str:
        """The manager's turn: returns what it decided. New tasks are in the plan when this returns."""
        self.turns = turn
        await self._take_results(ctx.run)
        last = turn == self.chosen.max_rounds
        room = 0 if last else self.chosen.max_tasks - len(self.tasks)
        own = self.chosen.own_answer
        ended = [task for task in self.tasks.values() if task.round == turn - 1]
        shown = marked_text(shown_tasks(ended), "team") if ended else f"Task: {self.task.question}"
        self._messages.append({"role": "user", "content": f"{shown}\n[turn {turn}/{self.chosen.max_rounds}]"})
        for number in range(self.chosen.max_errors + 1):
            key = f"manager/{turn}/{number}"
            step = await self.chat(self._messages, role=MANAGER, key=key, response_format=self._edits(room))
            self._messages.append({"role": "assistant", "content": step.text})
            try:
                edit, new = read_edit(
                    step.text, self.chosen.members, self.tasks, round_=turn, room=room, own_answer=own
                )
            except UnreadableReply as error:
                self.session.recorder.annotate(step.step_index, parsed=False, parse_error=str(error), turn=turn)
                self._messages.append({"role": "user", "content": f"Error: {error}"})
                continue
            self.session.recorder.annotate(
                step.step_index, parsed=True, turn=turn, edit=edit.model_dump(mode="json", exclude_defaults=True)
            )
            if not new:
                self._end(edit)
                return "answered"
            self.tasks |= {task.id: task for task in new}
            await self._revise(ctx.run, turn + 1)
            return "added tasks"
        self.outcome = "max_rounds" if last else "unreadable"
        return self.outcome

    def _edits(self, room: int) -> Constraint | None:
        """The constraint of the manager's next edit, which may add `room` tasks."""
        if not self.chosen.constrained:
            return None
        succeeded = [task.id for task in self.tasks.values() if task.state == "succeeded"]
        schema = edit_schema(self.chosen.members, self.tasks, succeeded, room, own_answer=self.chosen.own_answer)
        return Replies((schema,)).constraint()

    def _end(self, edit: Edit) -> None:
        self.answer = self.tasks[edit.answer_from].result if edit.answer_from is not None else str(edit.answer)
        self.outcome = "answered"

    async def _revise(self, run: str, turn: int) -> None:
        """Give the run its new plan, and wait until it has it: a run without an open node would end."""
        seen = (await self._executor.status(run)).run.seq
        await self._executor.revise(run, plan_of(list(self.tasks.values()), turn, self.chosen.concurrency))
        while True:
            async for event in self._executor.events(run, seen):
                seen = event.seq
                if event.kind == "note" and event.data.get("command") == "revise":
                    if problem := event.data.get("refused"):
                        raise PlanError("team", [problem])
                    return
            await clock.sleep(POLL_S)

    async def _take_results(self, run: str) -> None:
        """Take over states and errors of the tasks from the run."""
        nodes = (await self._executor.status(run)).nodes
        for task in self.tasks.values():
            task.state = str(nodes[task.id].state)
            if not task.result and task.state != "succeeded":
                task.result = str(nodes[task.id].error or task.state)

    async def _work(self, task: TeamTask, given: Mapping[str, Any]) -> str:
        """A member's turn at a task. It sees the task and the results it depends on, and nothing else."""
        results = [marked_text(str(value), name) for name, value in given.items()]
        member = Member(self, task.member, self.chosen.members[task.member], RULE if given else "")
        shown = "\n".join([*results, f"Question: {self.task.question}", f"Task: {task.task}"])
        try:
            replies = Replies(text=True) if self.chosen.constrained else None
            spoken = await member.speak(shown, key=f"task/{task.id}", replies=replies)
        except UnreadableReply as error:
            raise Permanent(str(error)) from None
        self.session.recorder.annotate(spoken.step.step_index, task=task.id, turn=task.round)
        task.result = spoken.step.content.strip()
        if not task.result:
            raise Permanent(f"{task.member} wrote nothing")
        return task.result

    def _instructions(self) -> str:
        return "\n".join(
            [
                self.chosen.instructions,
                "You act by editing the team's plan. Write only one JSON object.",
                f"To add tasks: {EXAMPLE}. `after` names tasks whose results the member needs.",
                f"To end: {FINISH if self.chosen.own_answer else FINISH_FROM}.",
                RULE,
                "Members:",
                roster(self.chosen.members, self.chosen.members),
            ]
        )

    def metadata(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "plan": [task.as_json() for task in self.tasks.values()]}
