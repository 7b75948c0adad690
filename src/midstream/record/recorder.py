"""Records one trajectory's model calls as exact tokens.

History is never decoded and re-encoded. A call whose messages continue a recorded step reuses its ids and appends the
template's delta; any other call starts a branch of the token tree, and the step stores the reason. Every step is on
disk before its text is returned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Constraint, Message, Step, ToolSchema
from midstream.engines.base import Completion, Engine, OnTokens, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.formats import ToolChoice, constrain
from midstream.engines.long_text import LONG, MANY_MESSAGES, off_loop
from midstream.record.replay import CALL_KEY, RecordedSteps, completion_of
from midstream.record.replies import ChatStep, reply_of
from midstream.record.store import Store
from midstream.record.token_buffer import TokenBuffer
from midstream.record.tree import PREFIX_IGNORE, TEMPLATE, PromptPlacement, TokenTree

TOP_LOG_PROBS = "top_log_probs"
"""Metadata key of a step: the most likely tokens at each position, as pairs of id and log-probability."""


@dataclass(frozen=True, slots=True)
class RoleEngine:
    """The engine of a module role, the tokenizer its ids belong to, and whether its replies are trained on. `adapter`
    names the published weights to sample from; empty leaves it to the engine."""

    engine: Engine
    tokenizer: ChatTokenizer | None
    trainable: bool
    adapter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call by an agent: a conversation in which the assistant speaks next, and its settings.

    With `prompt_ids` the prompt is exactly these tokens, and nothing is rendered. The step stores `metadata` and, with
    `keep_top_log_probs`, the most likely tokens that `top_log_probs` requests."""

    messages: tuple[Message, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[ToolSchema, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    role: str = "policy"
    constraint: Constraint | None = None
    top_log_probs: int = 0
    keep_top_log_probs: bool = False
    on_tokens: OnTokens | None = None
    on_prompt: Callable[[int], None] | None = None
    """Called with the number of prompt tokens, before the engine is called."""
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Extra variables for the chat template, which must use them."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    key: str = ""
    """Name of the call within its attempt, for calls whose order may differ from run to run: its sample depends on the
    key instead of its index, and an attempt that runs again finds the recorded step by it."""


class Recorder:
    """Creates and stores the steps of one trajectory."""

    def __init__(
        self,
        trajectory_uid: str,
        prompt_uid: str,
        *,
        seed: int,
        store: Store | None = None,
        channel: str = "train",
        prefix_ignore: Sequence[str] = PREFIX_IGNORE,
    ) -> None:
        self.trajectory_uid, self.prompt_uid = trajectory_uid, prompt_uid
        self._prefix_ignore = prefix_ignore
        self._seed, self._store, self._channel = seed, store, channel
        self.steps: list[Step] = []
        self.already_ended = False
        """Whether a step reached the store after the trajectory had ended there."""
        self._pending: set[int] = set()
        """Indices without a step: of running calls, of failed calls, and skipped by `submit`."""
        self._in_flight: set[int] = set()
        self._keys: set[str] = set()
        self._trees: dict[int, TokenTree] = {}
        self.replayed: RecordedSteps | None = None
        """Steps from which calls are answered, see `replay`."""

    def replay(self, steps: Iterable[Step], role_engines: Mapping[str, RoleEngine]) -> None:
        """Answer the calls of an attempt that runs again from its recorded `steps`, as long as they are the same calls;
        see `RecordedSteps`. Steps of calls with a key belong to the trajectory even if they are not asked for again.
        `role_engines` are by module role and include `policy`."""
        self.replayed = RecordedSteps(steps)
        while len(self.steps) < self.replayed.size:
            self._reserve_index()
        for step in self.replayed.keyed.values():
            self._add(step, role_engines.get(step.role, role_engines["policy"]))

    def restore(self, steps: Iterable[Step], role_engine: RoleEngine) -> None:
        """Continue after a restart: `steps` are those in the store, all answered by `role_engine`."""
        for step in steps:
            while len(self.steps) < step.step_index:  # a call without an answer keeps its index
                self._reserve_index()
            self.steps.append(step)
            self._remember(step, role_engine)

    async def chat(
        self,
        role_engine: RoleEngine,
        messages: Sequence[Message],
        sampling: SamplingParams,
        *,
        role: str = "policy",
        tools: Sequence[ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        response_format: Mapping[str, Any] | Constraint | None = None,
        key: str = "",
    ) -> ChatStep:
        """`call` for a conversation; the result can be read as a message. Arguments are those of `constrain`, and
        `Call.key`; raises `Unsupported` like `constrain`."""
        tokenizer = role_engine.tokenizer
        if tokenizer is not None:
            declared, constraint = constrain(
                tokenizer.format, tools, tool_choice=tool_choice, response_format=response_format
            )
        elif tools or response_format is not None:
            raise Unsupported(
                f"{role_engine.engine.name} returns complete text only: no tools and no response_format for '{role}'"
            )
        else:
            declared, constraint = (), None
        call = Call(
            messages=tuple(messages), sampling=sampling, role=role, tools=declared, constraint=constraint, key=key
        )
        step, _ = await self.call(role_engine, call)
        return ChatStep.of(step, partial(reply_of, tokenizer=tokenizer))

    async def call(self, role_engine: RoleEngine, call: Call) -> tuple[Step, Completion]:
        """Make one model call; the step is on disk when this returns. Propagates `PromptTooLong`, `Unsupported` and
        `EngineError` from the engine; then nothing is recorded. A completed answer is recorded even if the caller was
        cancelled meanwhile. If the call is cancelled while the engine works and `on_tokens` received tokens, they are
        recorded as a step that is not trained on, with the finish reason `interrupted` and the cancellation reason in
        `metadata["interrupted"]`."""
        position = None
        self._claim(call.key)
        if self.replayed is not None:
            position = None if call.key else self.replayed.position()
            step = self.replayed.answer(call, position, role_engine)
            if step is not None:
                if not call.key:
                    self._add(step, role_engine)
                return step, completion_of(step)
        reserved = self._reserve_index() if position is None else self.steps[position]
        index = reserved.step_index
        self._in_flight.add(index)
        sampling = call.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=derive_seed(self._seed, "call", call.key or index))
        buffer = TokenBuffer(call.on_tokens, role_engine.engine, role_engine.adapter)
        placement: PromptPlacement | None = None
        try:
            placement = await self._place(role_engine, call)
            if call.on_prompt is not None:
                call.on_prompt(len(placement.prompt_ids))
            completion = await role_engine.engine.generate(
                Request(
                    prompt_ids=placement.prompt_ids,
                    sampling=sampling,
                    session=self.trajectory_uid,
                    role=call.role,
                    adapter=role_engine.adapter,
                    messages=call.messages,
                    tools=call.tools,
                    constraint=call.constraint,
                    top_log_probs=call.top_log_probs,
                    on_tokens=None if call.on_tokens is None else buffer,
                )
            )
            step = self._step(index, role_engine, replace(call, sampling=sampling), placement, completion)
        except BaseException as error:
            partial = buffer.completion(role_engine.tokenizer) if isinstance(error, asyncio.CancelledError) else None
            if partial is None or placement is None:
                self._abandon(reserved)
                self._keys.discard(call.key)
                raise
            step = self._step(index, role_engine, replace(call, sampling=sampling), placement, partial)
            why = {"interrupted": str(error.args[0] if error.args else "cancelled")}
            step = replace(step, trainable=False, metadata={**step.metadata, **why})
            await self._recorded(reserved, step, role_engine)
            raise
        await self._recorded(reserved, step, role_engine)
        return step, completion

    def _step(
        self, index: int, role_engine: RoleEngine, call: Call, placement: PromptPlacement, completion: Completion
    ) -> Step:
        """Build the step of an answered call."""
        sampling = call.sampling
        extras: dict[str, Any] = {"stop": list(sampling.stop)} if sampling.stop else {}
        if call.keep_top_log_probs and completion.top_log_probs:
            extras[TOP_LOG_PROBS] = [[list(one) for one in top] for top in completion.top_log_probs]
        template = {TEMPLATE: dict(call.template)} if call.template else {}
        over_allowed = completion.over_allowed and call.constraint is not None
        return Step(
            prompt_ids=placement.prompt_ids if completion.prompt_ids is None else completion.prompt_ids,
            response_ids=completion.ids,
            rollout_log_probs=completion.log_probs,
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=index,
            policy_version=completion.policy_version,
            adapter=completion.adapter,
            metadata={
                **call.metadata,
                **({CALL_KEY: call.key} if call.key else {}),
                **template,
                **extras,
                **_sampling_metadata(sampling, None if over_allowed else call.constraint),
            },
            role=call.role,
            trainable=role_engine.trainable and completion.trainable and bool(completion.ids),
            parent=placement.parent,
            branch_reason=placement.branch_reason,
            temperature=sampling.temperature or 1.0,
            constraint=call.constraint if over_allowed else None,
            messages=call.messages,
            tools=call.tools,
            text=completion.text,
            finish_reason=completion.finish_reason,
            latency_s=completion.latency_s,
        )

    async def _recorded(self, reserved: Step, step: Step, role_engine: RoleEngine) -> None:
        """Store an answered step."""
        if self._store is None:
            self._add(step, role_engine)
        else:
            await self._append(reserved, step, role_engine, self._store)

    async def submit(self, step: Step) -> None:
        """Record a step that was sampled elsewhere, at its own `step_index`, which must be free (`is_free`); on disk
        when this returns."""
        while len(self.steps) <= step.step_index:
            self._reserve_index()
        placed = replace(step, parent=self._place_tokens(step.prompt_ids).parent)
        self._in_flight.add(step.step_index)
        try:
            if self._store is not None:
                self.already_ended = (
                    not await self._store.trajectories.append_future(placed, self._channel) or self.already_ended
                )
        finally:
            self._in_flight.discard(step.step_index)
        self._answered(placed)

    def is_free(self, step_index: int) -> bool:
        """Whether the index has neither a step nor a running call."""
        taken = step_index < len(self.steps) and step_index not in self._pending
        return not taken and step_index not in self._in_flight

    def annotate(self, step_index: int, **metadata: Any) -> None:
        """Add metadata to a recorded step (such as its parsed reply)."""
        step = self.steps[step_index]
        self.steps[step_index] = replace(step, metadata={**step.metadata, **metadata})

    def finished(self) -> list[Step]:
        """Return the answered steps, in order."""
        return [step for step in self.steps if step.step_index not in self._pending]

    def recorded(self) -> tuple[Step, ...]:
        """Return the answered steps, in order, with `is_last` set on the last one."""
        steps = self.finished()
        last = len(steps) - 1
        return tuple(
            step if step.is_last is (place == last) else replace(step, is_last=place == last)
            for place, step in enumerate(steps)
        )

    def _reserve_index(self) -> Step:
        """Reserve the next index with an unanswered step, so that concurrent calls keep their order."""
        step = Step(
            prompt_ids=(),
            response_ids=(),
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=len(self.steps),
        )
        self.steps.append(step)
        self._pending.add(step.step_index)
        return step

    def _claim(self, key: str) -> None:
        """Keep two calls from having the same key. A failed call gives its key back."""
        if key and key in self._keys:
            raise ValueError(f"trajectory '{self.trajectory_uid}' has made a call with the key '{key}' already")
        self._keys.add(key)

    async def _append(self, reserved: Step, step: Step, role_engine: RoleEngine, store: Store) -> None:
        """Add a step once it is on disk, even if the waiting caller is cancelled."""

        def settle(writing: asyncio.Future[bool]) -> None:
            if writing.cancelled() or writing.exception() is not None:
                self._abandon(reserved)
            else:
                self.already_ended = self.already_ended or not writing.result()
                self._add(step, role_engine)

        try:
            writing = store.trajectories.append_future(step, self._channel)
        except BaseException:
            self._abandon(reserved)
            raise
        try:
            await asyncio.shield(writing)
        finally:
            if writing.done():
                settle(writing)
            else:
                writing.add_done_callback(settle)
                await asyncio.wait([writing])

    def _add(self, step: Step, role_engine: RoleEngine) -> None:
        self._answered(step)
        self._remember(step, role_engine)

    def _answered(self, step: Step) -> None:
        self.steps[step.step_index] = step
        self._pending.discard(step.step_index)
        self._in_flight.discard(step.step_index)

    def _abandon(self, reserved: Step) -> None:
        """Remove the reserved step if it is the last; otherwise it stays, unanswered, and later calls keep their
        index."""
        self._in_flight.discard(reserved.step_index)
        if self.steps[-1] is reserved:
            self.steps.pop()
            self._pending.discard(reserved.step_index)

    async def _place(self, role_engine: RoleEngine, call: Call) -> PromptPlacement:
        if role_engine.tokenizer is None:
            return PromptPlacement((), None, "")
        if call.prompt_ids is not None:
            return self._place_tokens(call.prompt_ids)
        tree = self._tree(role_engine.tokenizer)
        many = len(call.messages) > MANY_MESSAGES
        if many or sum(len(str(message.get("content"))) for message in call.messages) > LONG:
            return await off_loop(tree.place, call.messages, call.tools, role_engine.tokenizer, call.template)
        return tree.place(call.messages, call.tools, role_engine.tokenizer, call.template)

    def _place_tokens(self, prompt_ids: tuple[int, ...]) -> PromptPlacement:
        """Place a prompt given as tokens: after the longest step it continues."""
        ends = ((len(step.prompt_ids) + len(step.response_ids), step) for step in self.finished() if step.response_ids)
        for size, step in sorted(ends, key=lambda end: -end[0]):
            if size <= len(prompt_ids) and prompt_ids[:size] == step.prompt_ids + step.response_ids:
                return PromptPlacement(prompt_ids, step.step_index, "")
        return PromptPlacement(prompt_ids, None, "")

    def _tree(self, tokenizer: ChatTokenizer) -> TokenTree:
        return self._trees.setdefault(id(tokenizer), TokenTree(self._prefix_ignore))

    def _remember(self, step: Step, role_engine: RoleEngine) -> None:
        if role_engine.tokenizer is not None and step.response_ids and step.messages:
            self._tree(role_engine.tokenizer).add(step, role_engine.tokenizer)


def _sampling_metadata(sampling: SamplingParams, unseen: Constraint | None) -> dict[str, Any]:
    """Return the metadata that describes altered sampling; empty for a plain sample. `unseen` is a constraint that the
    log-probabilities do not show."""
    altered = sampling.alterations()
    if unseen is not None:
        altered["constraint"] = unseen.kind
    return {"sampling": altered} if altered else {}
