"""`AgentFlowBase`: code that acts on a task. Subclass it, register it by name, implement `run`.

Each trajectory has its own flow object and its own `FlowSession`: engines by module role, a recorder, tools with a
budget, and resources that are closed at its end. A flow that raises fails its own trajectory only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from midstream.agents.endpoint import AgentEndpoint
from midstream.agents.resume import EarlierCalls, call_once
from midstream.core.config import Config, parse_config
from midstream.core.environments import Resume
from midstream.core.errors import ConfigError, UserError, nearest
from midstream.core.sampling import SamplingParams
from midstream.core.toolsets import Toolset, ToolSpec
from midstream.core.types import Constraint, Message, Status, Step, Task, ToolCall, ToolSchema, Trajectory
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import ToolChoice
from midstream.record.action_log import ActionLog
from midstream.record.recorder import Recorder, RoleEngine
from midstream.record.replies import ChatStep
from midstream.store import Database
from midstream.tools import Toolbox, ToolOutage, ToolSession

if TYPE_CHECKING:
    from midstream.agents.demonstrations import Demonstrator

Score = Callable[[Trajectory], Awaitable[Trajectory]]


@dataclass(slots=True)
class FlowSession:
    """State and resources of one running trajectory. `role_engines` are by module role and always include `policy`."""

    task: Task
    recorder: Recorder
    role_engines: Mapping[str, RoleEngine]
    tools: ToolSession
    sampling: Mapping[str, SamplingParams]
    score: Score | None = None
    endpoint: AgentEndpoint | None = None
    """Accepts the calls of a black-box agent; other flows do not need one."""
    tool_calls: list[ToolCall] = field(default_factory=list)
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Open resources of the flow (memory, an index, a sandbox, an MCP session), added with `await
    session.resources.enter_async_context(sandbox)`. Closed in reverse order when the flow ends, fails, times out or is
    cancelled."""
    actions: ActionLog | None = None
    """What the attempt did besides model calls, if it can be resumed after its process died."""
    database: Database | None = None
    """Where the flow keeps durable state of its own, if the attempt can be resumed."""
    earlier_calls: EarlierCalls | None = None
    """Tool calls of the trajectory from which this one branches: equal ones are answered by them."""


class AgentFlowBase(ABC):
    """Base of every agent flow. `settings` names the config section a flow accepts under `flow.settings`."""

    settings: ClassVar[type[Config]] = Config
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    """Module roles of this flow. Override `roles_for` when they depend on the settings."""
    by_rule: ClassVar[tuple[str, ...]] = ()
    """Roles that can follow a rule instead of asking an engine."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Roles that stand for the world around the agent, such as a simulated user. They are not trained, and use the
    engine `frozen`, unless the config sets `train` for them."""
    resume: ClassVar[Resume] = "replay"
    """How an attempt goes on after its process died. `replay`: `run` starts again, and its calls of `chat` and
    `call_tool` are answered from the record as long as they are the same calls in the same order (or have a `key`).
    `none`: the attempt starts again; for flows whose calls nobody can make again."""

    def __init__(self, session: FlowSession, config: Mapping[str, Any] | None = None) -> None:
        self.session = session
        self.config = parse_config(type(self).settings, dict(config or {}), "flow.settings")
        self.answer: str | None = None
        """The final answer, which rewards grade."""
        self.turns = 0
        """Turns taken, as the flow counts them."""
        self._generated: dict[tuple[tuple[int, ...], tuple[int, ...]], list[Step]] = {}

    @classmethod
    def roles_for(cls, settings: Config) -> tuple[str, ...]:
        """Return the module roles for these `settings` (an instance of `cls.settings`), such as a graph's nodes."""
        return cls.roles

    @classmethod
    def demonstrator(
        cls, settings: Config, tokenizer: ChatTokenizer, toolbox: Toolbox, *, wrong: float, seed: int
    ) -> Demonstrator | None:
        """Return an engine that shows how this flow carries out the demonstration of a task, for a warm start; None
        when the flow has none. `wrong` is the share of the tasks whose first action is shown with a wrong tool."""
        return None

    @abstractmethod
    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        """Act on the task and return the number of steps. `kwargs`: `task` and `raw_prompt` (the question as text),
        `trajectory_uid`, `prompt_uid`, and the task's metadata, except for its demonstration."""

    @property
    def task(self) -> Task:
        return self.session.task

    @property
    def steps(self) -> list[Step]:
        """Model calls recorded so far."""
        return self.session.recorder.finished()

    async def chat(
        self,
        messages: Sequence[Message],
        role: str = "policy",
        sampling_params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | Constraint | None = None,
        key: str = "",
        **overrides: Any,
    ) -> ChatStep:
        """Sample a reply of `role`. `overrides` change single sampling settings (`max_tokens=64`).

        `tools` are declared by the model's chat template; calls of them are data in the result's `tool_calls`, and
        nothing is run (see `call_tools`). `tool_choice` and `response_format` are OpenAI's; the latter may also be a
        `Constraint` of the whole reply, such as `Constraint.one_of("yes", "no")`. `key` names a call whose place among
        concurrent ones may differ from run to run; its sample depends on the key.

        Raises `ConfigError` for a role without an engine and for unknown settings, `Unsupported` for tools or an answer
        format that the role's model cannot have."""
        role_engine = self.session.role_engines.get(role)
        if role_engine is None:
            raise ConfigError(f"no engine for the role '{role}'", nearest(role, self.session.role_engines))
        sampling = sampling_params or self.session.sampling.get(role) or self.session.sampling["policy"]
        return await self.session.recorder.chat(
            role_engine,
            messages,
            _changed(sampling, overrides),
            role=role,
            tools=[tool.schema if isinstance(tool, ToolSpec) else tool for tool in tools],
            tool_choice=tool_choice,
            response_format=response_format,
            key=key,
        )

    async def call_tool(
        self, name: str, arguments: Mapping[str, Any], *, step_index: int | None = None, key: str = ""
    ) -> ToolCall:
        """Call a tool by name. A failure of the tool does not raise; check `ok`. `step_index` is the step that asked
        for it, by default the latest. `key` names a call whose place among concurrent ones may differ from run to run.

        Raises `ToolOutage` when infrastructure failed (unless `flow.tool_use.outage` is `report`); a flow that lets it
        pass fails as infrastructure, and the trajectory is not trained on."""
        recorded = self.steps
        if step_index is None and recorded:
            step_index = recorded[-1].step_index
        return await self._call_tool(name, arguments, step_index, key)

    async def call_tools(self, step: ChatStep) -> list[Message]:
        """Run the tool calls of a reply, in order, and return their results as messages that continue the conversation
        after `step.message`. A failure of a tool is a result too."""
        results: list[Message] = []
        for call, requested in zip(step.tool_calls, step.message.get("tool_calls", ()), strict=True):
            done = await self._call_tool(call.name, call.values, step.step_index)
            results.append({"role": "tool", "tool_call_id": requested["id"], "name": call.name, "content": done.result})
        return results

    async def _call_tool(self, name: str, arguments: Any, step_index: int | None, key: str = "") -> ToolCall:
        session = self.session

        async def call() -> ToolCall:
            earlier = None if session.tools.rebuilds(name) else session.earlier_calls
            known = None if earlier is None else earlier.take(name, session.tools.arguments_of(name, arguments))
            if known is None:
                return await session.tools.call(name, arguments, step_index=step_index)
            await session.tools.restore(known)
            return replace(known, step_index=step_index)

        try:
            if session.actions is None:
                done = await call()
            else:
                done = await call_once(session, name, arguments, step_index, key, call)
        except ToolOutage as outage:
            session.tool_calls.append(outage.call)
            raise
        session.tool_calls.append(done)
        return done

    async def use_toolset(self, toolset: Toolset) -> None:
        """Open `toolset` and offer its tools next to those of the config; it is closed with the trajectory.

        Raises `ConfigError` when a tool has the name of another one or an invalid schema."""
        await toolset.open()
        self.session.resources.push_async_callback(toolset.close)
        await self.session.tools.add(toolset)

    async def gateway_generate(
        self, trajectory_uid: str, prompt_uid: str, messages: Sequence[Message], **kwargs: Any
    ) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Sample a reply; returns (text, response_ids, prompt_ids). `kwargs` are sampling settings."""
        self._own(trajectory_uid)
        step = await self.chat(messages, **kwargs)
        self._generated.setdefault((step.prompt_ids, step.response_ids), []).append(step)
        return step.text, step.response_ids, step.prompt_ids

    async def gateway_submit_steps(self, steps: Sequence[Step], channel: str = "train") -> int:
        """Submit steps made by `gateway_generate`: adds their reward and metadata to the recorded steps. Returns their
        number."""
        recorder = self.session.recorder
        for step in steps:
            self._own(step.trajectory_uid)
            alike = self._generated.get((step.prompt_ids, step.response_ids), [])
            # Several calls may have sampled the same tokens: take the first one not submitted yet.
            recorded = alike.pop(0) if len(alike) > 1 else alike[0] if alike else None
            if recorded is None:
                raise ConfigError(
                    f"step {step.step_index} of '{step.trajectory_uid}' was not sampled through gateway_generate",
                    "submit the prompt_ids and response_ids that it returned, unchanged",
                )
            index = recorded.step_index
            recorder.steps[index] = replace(
                recorder.steps[index],
                reward=step.reward,
                metadata={**recorder.steps[index].metadata, **step.metadata, "channel": channel},
            )
            if step.is_last and self.answer is None:
                self.answer = recorded.text
        return len(steps)

    async def gateway_compute_reward(
        self, trajectory_uid: str, messages: Sequence[Message], dataset_fields: Mapping[str, Any] | None = None
    ) -> float | None:
        """Return the reward of this trajectory with the last assistant message of `messages` as its answer.

        `dataset_fields` override the task: `answer` its answer, other fields its metadata. Raises `ConfigError` when
        the run has no reward."""
        self._own(trajectory_uid)
        if self.session.score is None:
            raise ConfigError("this run has no reward function", "declare `reward` in the config")
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        fields = dict(dataset_fields or {})
        task = replace(
            self.task, answer=fields.pop("answer", self.task.answer), metadata={**self.task.metadata, **fields}
        )
        answered = replace(self.trajectory(), task=task, answer=replies[-1] if replies else None)
        scored = await self.session.score(answered)
        return scored.reward

    def trajectory(self, status: Status = Status.COMPLETED, error: str = "") -> Trajectory:
        """Return the trajectory so far."""
        recorder = self.session.recorder
        return Trajectory(
            uid=recorder.trajectory_uid,
            prompt_uid=recorder.prompt_uid,
            task=self.task,
            steps=recorder.recorded(),
            tool_calls=tuple(self.session.tool_calls),
            answer=self.answer,
            turns=self.turns or len(self.steps),
            status=status,
            error=error,
            metadata=self.metadata(),
        )

    def metadata(self) -> dict[str, Any]:
        """Return metadata to store with the trajectory, in addition to steps and tool calls."""
        return {}

    def _own(self, trajectory_uid: str) -> None:
        own = self.session.recorder.trajectory_uid
        if trajectory_uid != own:
            raise UserError(
                f"trajectory '{trajectory_uid}' is not this flow's ('{own}')", "use kwargs['trajectory_uid']"
            )


def _changed(sampling: SamplingParams, overrides: Mapping[str, Any]) -> SamplingParams:
    known = SamplingParams.__dataclass_fields__
    for name in overrides:
        if name not in known:
            raise ConfigError(f"unknown sampling setting '{name}'", nearest(name, known))
    return replace(sampling, **overrides) if overrides else sampling
