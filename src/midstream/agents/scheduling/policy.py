"""`RolePolicy`: a scheduling policy that asks a model which of the feasible nodes starts.

The reply is constrained to the names of the feasible nodes, so that nodes that cannot start have probability 0, and
sampler and learner normalise over the others: seed 004, §4.1, with the indicator 1{p(v) = s} generalised to "all
dependencies are met and the resources are free".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import fsum
from typing import Any, Protocol

from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Message
from midstream.plans import Choice, ReadyNode, SchedulerState
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.replies import ChatStep

ROLE = "scheduler"
_log = logging.getLogger(__name__)


class Chat(Protocol):
    """Samples a reply of a role; `AgentFlowBase.chat` is one."""

    async def __call__(
        self, messages: Sequence[Message], role: str = "policy", *, response_format: Constraint, key: str = ""
    ) -> ChatStep: ...


def chat_with(engine: RoleEngine, recorder: Recorder, sampling: SamplingParams) -> Chat:
    """Return a `Chat` for an executor outside of a flow. `recorder` keeps the model calls, in a store if it has one."""

    async def chat(
        messages: Sequence[Message], role: str = "policy", *, response_format: Constraint, key: str = ""
    ) -> ChatStep:
        return await recorder.chat(engine, messages, sampling, role=role, response_format=response_format, key=key)

    return chat


class RolePolicy:
    """Asks `role` which feasible node starts, with the conversation that `describe` makes of the state.

    `names` shortens the path of a node to what the model writes; by default the path itself. `key` names the call for a
    state and its feasible nodes; without one, a resumed attempt must ask everything again. A single feasible node
    starts without a question, with log-probability 0. The metadata of a choice has `trajectory` and `step_index` of the
    model call; the log-probability is that of its tokens.

    A model that cannot be constrained may reply something else. Then the node that became ready first starts, the
    metadata has `unreadable`, and the step is not a sample of the policy: `unreadable` counts them."""

    def __init__(
        self,
        chat: Chat,
        describe: Callable[[SchedulerState, Sequence[ReadyNode]], Sequence[Message]] | None = None,
        *,
        role: str = ROLE,
        names: Callable[[ReadyNode], str] = lambda node: node.path,
        key: Callable[[SchedulerState, Sequence[ReadyNode]], str] = lambda state, feasible: "",
    ) -> None:
        self.name = f"role:{role}"
        self.unreadable = 0
        self._chat, self._role, self._names, self._key = chat, role, names, key
        self._describe = describe or self._default_messages

    async def choose(self, state: SchedulerState) -> Choice:
        feasible = [at for at, can_start in enumerate(state.feasible) if can_start]
        if len(feasible) == 1:
            return Choice(feasible[0], 0.0)
        by_name = {self._names(state.ready[at]): at for at in feasible}
        if len(by_name) < len(feasible):
            raise ValueError("two feasible nodes have the same name")
        nodes = [state.ready[at] for at in feasible]
        messages, key = self._describe(state, nodes), self._key(state, nodes)
        step = await self._chat(messages, self._role, response_format=Constraint.one_of(*by_name), key=key)
        made_by: dict[str, Any] = {"trajectory": step.trajectory_uid, "step_index": step.step_index}
        index = by_name.get(step.content.strip())
        if index is None:
            self.unreadable += 1
            _log.debug("'%s' is not one of %s", step.content, ", ".join(by_name))
            return Choice(feasible[0], 0.0, {**made_by, "unreadable": step.content[:200]})
        return Choice(index, fsum(step.rollout_log_probs or ()), made_by)

    def _default_messages(self, state: SchedulerState, feasible: Sequence[ReadyNode]) -> list[Message]:
        lines = [f"{len(state.running)} running, {state.succeeded} done. Start one:"]
        for node in feasible:
            needs = "".join(f", {count} {name}" for name, count in node.resources.items())
            lines.append(f"{self._names(node)}: {node.handler}{needs}, {node.dependents} wait for it")
        return [{"role": "user", "content": "\n".join(lines)}]
