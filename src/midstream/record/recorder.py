"""One trajectory's model calls, as exact tokens.

History is never decoded and encoded again. A call whose messages go on from a recorded one reuses its ids and adds the
template's delta; any other call starts a branch of the token tree, and the reason is kept on the step. Every step is in
the store before its text is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from midstream.core.sampling import SamplingParams
from midstream.core.seeds import derive_seed
from midstream.core.types import Message, Step
from midstream.engines.base import Engine, Request
from midstream.engines.chat import ChatTokenizer
from midstream.record.store import Store


@dataclass(frozen=True, slots=True)
class Voice:
    """Who answers a call: an engine, the tokenizer its ids belong to, and whether what it says may be trained on."""

    engine: Engine
    tokenizer: ChatTokenizer | None
    trainable: bool


class Recorder:
    """Makes and keeps the steps of one trajectory."""

    def __init__(
        self, trajectory_uid: str, prompt_uid: str, *, seed: int, store: Store | None = None, channel: str = "train"
    ) -> None:
        self.trajectory_uid, self.prompt_uid = trajectory_uid, prompt_uid
        self._seed, self._store, self._channel = seed, store, channel
        self.steps: list[Step] = []
        self._pending: set[int] = set()

    async def chat(
        self,
        voice: Voice,
        messages: Sequence[Message],
        sampling: SamplingParams,
        *,
        role: str = "policy",
        metadata: Mapping[str, Any] | None = None,
    ) -> Step:
        """One model call. Raises `PromptTooLong` and `EngineError` as the engine does; then nothing is recorded."""
        index = len(self.steps)
        messages = tuple(messages)
        if sampling.seed is None:
            sampling = replace(sampling, seed=derive_seed(self._seed, "call", index))
        prompt_ids, parent, branch_reason = self._prompt(voice, messages)
        # The place in the order is taken before waiting, so that calls made side by side keep theirs.
        placeholder = Step(
            prompt_ids=prompt_ids,
            response_ids=(),
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=index,
        )
        self.steps.append(placeholder)
        self._pending.add(index)
        try:
            completion = await voice.engine.generate(
                Request(
                    prompt_ids=prompt_ids, sampling=sampling, session=self.trajectory_uid, role=role, messages=messages
                )
            )
        except BaseException:
            # A call made later keeps its place; then this one's stays behind, unfinished.
            if self.steps[-1] is placeholder:
                self.steps.pop()
                self._pending.discard(index)
            raise
        step = Step(
            prompt_ids=prompt_ids,
            response_ids=completion.ids,
            rollout_log_probs=completion.log_probs,
            trajectory_uid=self.trajectory_uid,
            prompt_uid=self.prompt_uid,
            step_index=index,
            policy_version=completion.policy_version,
            metadata=dict(metadata or {}),
            role=role,
            trainable=voice.trainable and bool(completion.ids),
            parent=parent,
            branch_reason=branch_reason,
            temperature=sampling.temperature or 1.0,
            messages=messages,
            text=completion.text,
            finish_reason=completion.finish_reason,
            latency_s=completion.latency_s,
        )
        if self._store is not None:
            await self._store.append(step, self._channel)
        self.steps[index] = step
        self._pending.discard(index)
        return step

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
        return tuple(replace(step, is_last=step is steps[-1]) for step in steps)

    def _prompt(self, voice: Voice, messages: tuple[Message, ...]) -> tuple[tuple[int, ...], int | None, str]:
        """(ids, parent, why not an extension) for a call with `messages`."""
        if voice.tokenizer is None:
            return (), None, ""
        reason = ""
        sampled = {step.text for step in self.steps if step.response_ids}
        for step in sorted(self.steps, key=lambda step: -len(step.messages)):
            if not step.response_ids:
                continue
            history = (*step.messages, {"role": "assistant", "content": step.text})
            if len(history) < len(messages) and messages[: len(history)] == history:
                new = messages[len(history) :]
                delta = voice.tokenizer.extension(step.messages, step.text, step.response_ids, new)
                if delta is not None:
                    # A later reply of the policy among the new messages is encoded again: its own step could not go on.
                    again = any(one["role"] == "assistant" and one["content"] in sampled for one in new)
                    why = (reason or "edited_history") if again else ""
                    return step.prompt_ids + step.response_ids + delta, step.step_index, why
                reason = "template"
            elif not reason and step.messages and messages[0] == step.messages[0]:
                reason = "edited_history"
        if not reason and any(step.response_ids for step in self.steps):
            reason = "new_conversation"
        return voice.tokenizer.render(messages), None, reason
