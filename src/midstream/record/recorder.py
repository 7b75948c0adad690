"""One trajectory's model calls, as exact tokens.

History is never decoded and encoded again. A call whose messages go on from a recorded one reuses its ids and adds the
template's delta; any other call starts a branch of the token tree, and the reason is kept on the step. Every step is in
the store before its text is handed on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import FinishReason, Message, Step, ToolSchema
from midstream.engines.base import Completion, Constraint, Engine, OnTokens, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.long_text import LONG, MANY_MESSAGES, off_loop
from midstream.record.store import Store
from midstream.record.tree import PREFIX_IGNORE, TEMPLATE, PromptPlacement, TokenTree

TOP_LOG_PROBS = "top_log_probs"
"""In a step's metadata: the likeliest tokens at each place, as pairs of id and log-probability."""


@dataclass(frozen=True, slots=True)
class RoleEngine:
    """Who answers a call: an engine, the tokenizer its ids belong to, and whether what it says may be trained on."""

    engine: Engine
    tokenizer: ChatTokenizer | None
    trainable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model call as an agent makes it: a conversation in which the assistant speaks next, and how.

    With `prompt_ids` the prompt is these tokens, and nothing is rendered. `metadata` is kept with the step, and so are,
    with `keep_top_log_probs`, the likeliest tokens that `top_log_probs` asks for."""

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
    """Called with the number of tokens of the prompt, before the engine has it."""
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments for the chat template, which must read them."""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Heard:
    """Hands tokens on as an engine samples them, and keeps them for a call that is cancelled before its end."""

    def __init__(self, on_tokens: OnTokens | None, policy_version: int) -> None:
        self._on_tokens, self._policy_version = on_tokens, policy_version
        self._began = time.perf_counter()
        self._ids: list[int] = []
        self._log_probs: list[float] = []

    def __call__(self, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        self._ids += ids
        self._log_probs += log_probs
        if self._on_tokens is not None:
            self._on_tokens(ids, log_probs)

    def completion(self, tokenizer: ChatTokenizer | None) -> Completion | None:
        """What was sampled so far; None when that is nothing."""
        if not self._ids or tokenizer is None:
            return None
        return Completion(
            ids=tuple(self._ids),
            log_probs=tuple(self._log_probs),
            text=tokenizer.text_of(self._ids),
            finish_reason=FinishReason.INTERRUPTED,
            policy_version=self._policy_version,
            latency_s=time.perf_counter() - self._began,
        )


class Recorder:
    """Makes and keeps the steps of one trajectory."""

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
        self.over = False
        """Whether a step came to the store after somebody had ended the trajectory there."""
        self._pending: set[int] = set()
        """Places without a step: of calls under way, of calls that failed, and left out by `submit`."""
        self._under_way: set[int] = set()
        self._trees: dict[int, TokenTree] = {}

    def restore(self, steps: Iterable[Step], role_engine: RoleEngine) -> None:
        """Go on where a process that ended left off: `steps` are those in the store, all spoken by `role_engine`."""
        for step in steps:
            while len(self.steps) < step.step_index:  # a call that was never answered keeps its place
                self._take_place()
            self.steps.append(step)
            self._remember(step, role_engine)

    async def chat(
        self,
        role_engine: RoleEngine,
        messages: Sequence[Message],
        sampling: SamplingParams,
        *,
        role: str = "policy",
        metadata: Mapping[str, Any] | None = None,
    ) -> Step:
        """`call` for a plain conversation."""
        call = Call(messages=tuple(messages), sampling=sampling, role=role, metadata=metadata or {})
        step, _ = await self.call(role_engine, call)
        return step

    async def call(self, role_engine: RoleEngine, call: Call) -> tuple[Step, Completion]:
        """One model call; the step is on disk when this returns. Raises `PromptTooLong`, `Unsupported` and
        `EngineError` as the engine does; then nothing is recorded. What the engine has answered is recorded, whether or
        not somebody still waits for it. A call that is cancelled while the engine works leaves a step when `on_tokens`
        had tokens of it: those, not trained on, with the finish reason `interrupted` and in `metadata["interrupted"]`
        what it was cancelled with."""
        index = len(self.steps)
        placeholder = self._take_place()
        self._under_way.add(index)
        sampling = call.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=derive_seed(self._seed, "call", index))
        heard = Heard(call.on_tokens, role_engine.engine.policy_version)
        place: PromptPlacement | None = None
        try:
            place = await self._place(role_engine, call)
            if call.on_prompt is not None:
                call.on_prompt(len(place.prompt_ids))
            completion = await role_engine.engine.generate(
                Request(
                    prompt_ids=place.prompt_ids,
                    sampling=sampling,
                    session=self.trajectory_uid,
                    role=call.role,
                    messages=call.messages,
                    tools=call.tools,
                    constraint=call.constraint,
                    top_log_probs=call.top_log_probs,
                    on_tokens=None if call.on_tokens is None else heard,
                )
            )
            step = self._step(index, role_engine, replace(call, sampling=sampling), place, completion)
        except BaseException as error:
            cut = heard.completion(role_engine.tokenizer) if isinstance(error, asyncio.CancelledError) else None
            if cut is None or place is None:
                self._give_up(placeholder)
                raise
            step = self._step(index, role_engine, replace(call, sampling=sampling), place, cut)
            why = {"interrupted": str(error.args[0] if error.args else "cancelled")}
            step = replace(step, trainable=False, metadata={**step.metadata, **why})
            await self._recorded(placeholder, step, role_engine)
            raise
        await self._recorded(placeholder, step, role_engine)
        return step, completion

    def _step(
        self, index: int, role_engine: RoleEngine, call: Call, place: PromptPlacement, completion: Completion
    ) -> Step:
        """The step that an answered call is."""
        sampling = call.sampling
        kept: dict[str, Any] = {"stop": list(sampling.stop)} if sampling.stop else {}
        if call.keep_top_log_probs and completion.top_log_probs:
            kept[TOP_LOG_PROBS] = [[list(one) for one in top] for top in completion.top_log_probs]
        template = {TEMPLATE: dict(call.template)} if call.template else {}
        return Step(
            prompt_ids=place.prompt_ids if completion.prompt_ids is None else completion.prompt_ids,
            response_ids=completion.ids,
            rollout_log_probs=completion.log_probs,
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=index,
            policy_version=completion.policy_version,
            metadata={**call.metadata, **template, **kept, **_how_sampled(sampling, call.constraint)},
            role=call.role,
            trainable=role_engine.trainable and bool(completion.ids),
            parent=place.parent,
            branch_reason=place.branch_reason,
            temperature=sampling.temperature or 1.0,
            messages=call.messages,
            tools=call.tools,
            text=completion.text,
            finish_reason=completion.finish_reason,
            latency_s=completion.latency_s,
        )

    async def _recorded(self, placeholder: Step, step: Step, role_engine: RoleEngine) -> None:
        """Keep an answered step, in the store where there is one."""
        if self._store is None:
            self._keep(step, role_engine)
        else:
            await self._append(placeholder, step, role_engine, self._store)

    async def submit(self, step: Step) -> None:
        """Record a step that was sampled elsewhere, at its own `step_index`, which must be free (`is_free`); on disk
        when this returns."""
        while len(self.steps) <= step.step_index:
            self._take_place()
        own = replace(step, parent=self._given(step.prompt_ids).parent)
        self._under_way.add(step.step_index)
        try:
            if self._store is not None:
                self.over = not await self._store.trajectories.append_future(own, self._channel) or self.over
        finally:
            self._under_way.discard(step.step_index)
        self._answered(own)

    def is_free(self, step_index: int) -> bool:
        """Whether there is neither a step at this place nor a call that will put one there."""
        taken = step_index < len(self.steps) and step_index not in self._pending
        return not taken and step_index not in self._under_way

    def annotate(self, step_index: int, **metadata: Any) -> None:
        """Add to the metadata of a recorded step (what its text was parsed into, say)."""
        step = self.steps[step_index]
        self.steps[step_index] = replace(step, metadata={**step.metadata, **metadata})

    def finished(self) -> list[Step]:
        """The steps that were answered, in order."""
        return [step for step in self.steps if step.step_index not in self._pending]

    def recorded(self) -> tuple[Step, ...]:
        """The finished steps, in order; the last one marked."""
        steps = self.finished()
        last = len(steps) - 1
        return tuple(
            step if step.is_last is (place == last) else replace(step, is_last=place == last)
            for place, step in enumerate(steps)
        )

    def _take_place(self) -> Step:
        """A step not answered yet, so that calls made side by side keep the order they were made in."""
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

    async def _append(self, place: Step, step: Step, role_engine: RoleEngine, store: Store) -> None:
        """Keep a step once it is on disk, also when whoever waits for that is cancelled."""

        def settle(writing: asyncio.Future[bool]) -> None:
            if writing.cancelled() or writing.exception() is not None:
                self._give_up(place)
            else:
                self.over = self.over or not writing.result()
                self._keep(step, role_engine)

        try:
            writing = store.trajectories.append_future(step, self._channel)
        except BaseException:
            self._give_up(place)
            raise
        try:
            await asyncio.shield(writing)
        finally:
            if writing.done():
                settle(writing)
            else:
                writing.add_done_callback(settle)
                await asyncio.wait([writing])

    def _keep(self, step: Step, role_engine: RoleEngine) -> None:
        self._answered(step)
        self._remember(step, role_engine)

    def _answered(self, step: Step) -> None:
        self.steps[step.step_index] = step
        self._pending.discard(step.step_index)
        self._under_way.discard(step.step_index)

    def _give_up(self, place: Step) -> None:
        """A call made later keeps its place; then this one's stays behind, unfinished."""
        self._under_way.discard(place.step_index)
        if self.steps[-1] is place:
            self.steps.pop()
            self._pending.discard(place.step_index)

    async def _place(self, role_engine: RoleEngine, call: Call) -> PromptPlacement:
        if role_engine.tokenizer is None:
            return PromptPlacement((), None, "")
        if call.prompt_ids is not None:
            return self._given(call.prompt_ids)
        tree = self._tree(role_engine.tokenizer)
        many = len(call.messages) > MANY_MESSAGES
        if many or sum(len(str(message.get("content"))) for message in call.messages) > LONG:
            return await off_loop(tree.place, call.messages, call.tools, role_engine.tokenizer, call.template)
        return tree.place(call.messages, call.tools, role_engine.tokenizer, call.template)

    def _given(self, prompt_ids: tuple[int, ...]) -> PromptPlacement:
        """The place of a prompt that came as tokens: after the longest step that it goes on from."""
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


def _how_sampled(sampling: SamplingParams, constraint: Constraint | None) -> dict[str, Any]:
    """What a step's metadata say of how it was sampled: nothing, where that was plainly."""
    found = sampling.alterations()
    if constraint is not None:
        found["constraint"] = constraint.kind
    return {"sampling": found} if found else {}
