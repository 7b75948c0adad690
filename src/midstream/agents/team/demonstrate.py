"""Demonstrations of a team: what each role replies, turn by turn, as the task's metadata has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from midstream.agents.demonstrations import OTHERWISE, Assignment, Demonstrator, demonstration_of
from midstream.core.errors import ConfigError, EngineError, nearest
from midstream.core.types import Task
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.tools import Toolbox


class TeamDemonstrator(Demonstrator):
    """Replies of `roles`. A task's `demonstration` is an object: the replies of each role, in order.

    Raises `ConfigError` for a share `wrong` above 0: what a wrong action would be, only the task knows."""

    def __init__(
        self, tokenizer: ChatTokenizer, toolbox: Toolbox, roles: Sequence[str], *, wrong: float, seed: int
    ) -> None:
        if wrong:
            raise ConfigError(
                "warm_start.wrong is above 0, and demonstrations of teams are imitated as they are written",
                "set warm_start.wrong=0, and write wrong replies into some demonstrations",
            )
        super().__init__(tokenizer, toolbox, wrong=wrong, seed=seed)
        self.roles = tuple(roles)
        self._given: Counter[tuple[str, str]] = Counter()

    def check(self, task: Task) -> None:
        written = demonstration_of(task)
        if written is None:
            raise ConfigError(
                f"warm_start needs tasks with a demonstration, and the task '{task.id}' has none",
                f"{OTHERWISE}, or give tasks the replies of each role as metadata 'demonstration'",
            )
        if not (isinstance(written, Mapping) and written and all(map(_are_replies, written.values()))):
            raise ConfigError(
                f"the demonstration of the task '{task.id}' is not an object of replies by role: {written!r}",
                f'write {{"ROLE": ["first reply", ...]}}; or {OTHERWISE}',
            )
        for role in written:
            if role not in self.roles:
                raise ConfigError(
                    f"the demonstration of the task '{task.id}' has replies of '{role}', which is no role of the team",
                    nearest(role, self.roles),
                )

    def assign(self, right: Mapping[str, Task], wrong: Mapping[str, Task]) -> None:
        # Nothing is shown wrong: both trajectories of a task are the same.
        for uid, task in {**right, **wrong}.items():
            self._running[uid] = Assignment(task)

    def reply(self, assignment: Assignment, request: Request) -> str:
        replies = demonstration_of(assignment.task).get(request.role, ())
        number = self._given[request.session, request.role]
        if number >= len(replies):
            raise EngineError(
                f"the demonstration of the task '{assignment.task.id}' has {len(replies)} replies of "
                f"'{request.role}', and the flow asks for another one"
            )
        self._given[request.session, request.role] += 1
        return replies[number]


def _are_replies(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) and one for one in value)
