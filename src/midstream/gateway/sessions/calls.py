"""Calls to the model, whatever dialect they came in: a place at the engine, one or more answers, each on disk before it
is acknowledged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from midstream.core.sampling import SamplingParams
from midstream.core.types import Step
from midstream.engines.base import Completion
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.config import GatewayConfig
from midstream.gateway.dialects.hints import template_arguments
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.metrics import Metrics
from midstream.gateway.limits.admission import AdmissionController
from midstream.gateway.limits.callers import Caller
from midstream.gateway.limits.length import check_length
from midstream.gateway.limits.retries import OWN_KEY, Attempt
from midstream.gateway.sessions.active import ActiveTrajectory, ended
from midstream.gateway.sessions.answer import Answer, AnswerStream, answer_of, new_answer_id
from midstream.gateway.sessions.asks import Ask, Piece, fingerprint_of, pieces_again, pieces_of
from midstream.gateway.sessions.trajectories import Trajectories
from midstream.record.recorder import Call, Recorder, RoleEngine

T = TypeVar("T")
HUNG_UP = "the client hung up"


class Calls:
    """Answers calls to one model."""

    def __init__(
        self,
        config: GatewayConfig,
        role_engine: RoleEngine,
        tokenizer: ChatTokenizer,
        gate: AdmissionController,
        trajectories: Trajectories,
        metrics: Metrics,
    ) -> None:
        self._config, self._role_engine, self._tokenizer = config, role_engine, tokenizer
        self._gate, self._trajectories, self._metrics = gate, trajectories, metrics

    async def must_fit(self, live: ActiveTrajectory, ask: Ask) -> None:
        """Raises `PromptTooLong` for a call whose prompt cannot fit the context of whoever answers it."""
        role_engine, call = self._spoken(live, ask)
        if call.prompt_ids is None:
            tokenizer = role_engine.tokenizer or self._tokenizer
            await check_length(tokenizer, role_engine.engine.context_length, call.messages, call.tools)

    async def ask(self, live: ActiveTrajectory, ask: Ask, caller: Caller) -> list[Answer]:
        """All answers, in order, once they are on disk."""
        ask, attempt = self._attempted(live, self._due(ask))
        async with self._called(live, ask) as known:
            answers = {choice: self._replayed(step) for choice, step in known.items()}
            missing = [choice for choice in range(ask.choices) if choice not in known]
            made = await _together([self._make(live, ask, caller, choice) for choice in missing])
            answers |= zip(missing, made, strict=True)
            if attempt is not None:
                attempt.delivered = True
            return [answer for _, answer in sorted(answers.items())]

    async def stream(self, live: ActiveTrajectory, ask: Ask, caller: Caller) -> AsyncGenerator[Piece]:
        """The answers as they come: deltas in any order of choices, then each choice's answer, once it is on disk.
        Closing the iterator gives up what is not finished."""
        ask, attempt = self._attempted(live, self._due(ask))
        pieces = asyncio.Queue[Piece | Exception]()

        async def make(choice: int) -> None:
            try:
                answer = await self._make(live, ask, caller, choice, pieces.put_nowait)
                pieces.put_nowait(Piece(choice, answer.id, answer=answer, prompt_tokens=len(answer.step.prompt_ids)))
            except Exception as error:
                pieces.put_nowait(error)

        async with self._called(live, ask) as known:
            making = [asyncio.create_task(make(choice)) for choice in range(ask.choices) if choice not in known]
            try:
                for choice, step in sorted(known.items()):
                    answer = self._replayed(step)
                    for piece in pieces_again(choice, answer, self._tokenizer):
                        yield piece
                    yield Piece(choice, answer.id, answer=answer, prompt_tokens=len(step.prompt_ids))
                answered = 0
                while answered < len(making):
                    piece = await pieces.get()
                    if isinstance(piece, Exception):
                        raise piece
                    answered += piece.answer is not None
                    yield piece
                if attempt is not None:
                    attempt.delivered = True
            finally:
                for task in making:
                    task.cancel(HUNG_UP)
                # What an engine has answered is on disk before the call counts as over: a retry must find it.
                await asyncio.gather(*making, return_exceptions=True)

    async def generate(self, prompt_ids: tuple[int, ...], sampling: SamplingParams, caller: Caller) -> Step:
        """A response to token ids that belongs to no trajectory and is not recorded: its caller submits the step."""
        call = Call(prompt_ids=prompt_ids, sampling=self._config.held(sampling))
        uid = uuid.uuid4().hex
        async with self._place(caller.key, asyncio.get_running_loop().time() + self._config.limits.timeout_s):
            try:
                step, _ = await Recorder(uid, "", seed=uuid.uuid4().int >> 65).call(self._role_engine, call)
            finally:
                self._role_engine.engine.leave(uid)
        return step

    def sampled_as(self, live: ActiveTrajectory, ask: Ask) -> SamplingParams:
        """The sampling settings that hold for `ask`."""
        return self._spoken(live, ask)[1].sampling

    def _attempted(self, live: ActiveTrajectory, ask: Ask) -> tuple[Ask, Attempt | None]:
        """`ask` with a key of ours, where it comes from an SDK that may make it again without one of its own."""
        if ask.key is not None or ask.retry is None:
            return ask, None
        attempt = live.retries.again(ask, live.recorder.finished()) if ask.retry else None
        if attempt is None:
            attempt = live.retries.first(ask.call, f"{OWN_KEY}{new_answer_id()}")
        return replace(ask, key=attempt.key), attempt

    @asynccontextmanager
    async def _called(self, live: ActiveTrajectory, ask: Ask) -> AsyncIterator[dict[int, Step]]:
        """Inside, `ask` is under way; gives the steps that were made for its key already, by choice."""
        if live.recorder.already_ended:
            self._trajectories.was_ended(live)
        if live.ended is not None:
            raise ended(live)
        if ask.choices > self._config.limits.choices:
            raise ApiError(400, f"n is {ask.choices}; at most {self._config.limits.choices} are given", param="n")
        live.in_flight += 1
        try:
            if ask.key is None:
                yield {}
            else:
                async with AsyncExitStack() as alone:
                    yield await self._known(live, ask, alone)
        finally:
            live.in_flight -= 1
            live.touch()

    async def _known(self, live: ActiveTrajectory, ask: Ask, alone: AsyncExitStack) -> dict[int, Step]:
        """The steps made for the key of `ask` already, once nobody else is making them; `alone` keeps others waiting
        until it is closed. Raises `ApiError` 409 when the key was used for another call."""
        assert ask.key is not None
        try:
            async with asyncio.timeout_at(ask.due):
                await alone.enter_async_context(live.answering.of(ask.key))
        except TimeoutError:
            raise self._too_late() from None
        known = live.recorded(ask.key)
        for step in known.values():
            if step.metadata.get("call_fingerprint") not in (None, ask.fingerprint):
                raise ApiError(
                    409,
                    f"the idempotency key '{ask.key}' was used for another call; make a key for each call, and send it "
                    "again only when that call is made again",
                    code="idempotency_key_reused",
                )
        return {choice: step for choice, step in known.items() if choice < ask.choices}

    def _spoken(self, live: ActiveTrajectory, ask: Ask) -> tuple[RoleEngine, Call]:
        """Who answers, and how: a rollout's sampling settings hold, whatever its agent asks for."""
        call = ask.call
        if not live.role_engines:
            return self._role_engine, replace(call, role=ask.role or "policy")
        role = next((name for name in (ask.role or "", call.role) if name in live.role_engines), "policy")
        held = live.sampling[role]
        asked = call.sampling
        sampling = replace(held, max_tokens=min(asked.max_tokens, held.max_tokens), stop=asked.stop or held.stop)
        return live.role_engines[role], replace(call, role=role, sampling=sampling)

    def _replayed(self, step: Step) -> Answer:
        self._metrics.replayed.inc()
        return answer_of(step, self._tokenizer)

    async def _make(
        self, live: ActiveTrajectory, ask: Ask, caller: Caller, choice: int, say: Callable[[Piece], None] | None = None
    ) -> Answer:
        """One choice of `ask`; `say` hears of its deltas."""
        role_engine, call = self._spoken(live, ask)
        if call.metadata.get("hints") and role_engine.tokenizer is not None:
            call = replace(call, template=template_arguments(call.metadata, role_engine.tokenizer.reads))
        answer_id = new_answer_id()
        metadata: dict[str, Any] = {**call.metadata, "answer_id": answer_id}
        if ask.key is not None:
            metadata["idempotency_key"] = ask.key
        if ask.fingerprint:
            metadata["call_fingerprint"] = ask.fingerprint
            call = replace(call, keep_top_log_probs=True)
        if ask.choices > 1:
            metadata["choice"] = choice
            if call.sampling.seed is not None:
                call = replace(call, sampling=replace(call.sampling, seed=call.sampling.seed + choice))
        call = replace(call, metadata=metadata)
        if say is None:
            return self._answered(live, *await self._recorded(live, role_engine, call, caller, ask.due))
        stream = AnswerStream(self._tokenizer, call.tools, call.sampling.stop, plain=not call.messages)
        prompt_tokens = 0

        def on_prompt(size: int) -> None:
            nonlocal prompt_tokens
            prompt_tokens = size

        def on_tokens(ids: Sequence[int], log_probs: Sequence[float]) -> None:
            for piece in pieces_of(choice, answer_id, stream, ids, log_probs, prompt_tokens):
                say(piece)

        call = replace(call, on_tokens=on_tokens, on_prompt=on_prompt)
        made = await self._recorded(live, role_engine, call, caller, ask.due)
        for delta in stream.close():
            say(Piece(choice, answer_id, delta, prompt_tokens=prompt_tokens))
        return self._answered(live, *made)

    async def _recorded(
        self, live: ActiveTrajectory, role_engine: RoleEngine, call: Call, caller: Caller, due: float
    ) -> tuple[Step, Completion]:
        async with self._place(caller.key or live.key, due):
            return await live.recorder.call(role_engine, call)

    def _answered(self, live: ActiveTrajectory, step: Step, completion: Completion) -> Answer:
        if live.recorder.already_ended:
            self._trajectories.was_ended(live)
        if live.ended is not None:
            self._metrics.late.inc()
        self._metrics.recorded(step, None if step.parent is None else live.recorder.steps[step.parent])
        answer = answer_of(step, self._tokenizer, completion)
        self._metrics.malformed.inc(answer.reply.malformed_calls)
        return answer

    @asynccontextmanager
    async def _place(self, key: str | None, due: float) -> AsyncIterator[None]:
        """A place at the engine, until the call is `due`, within the limits of `key`."""
        limit = asyncio.timeout_at(due)
        try:
            async with limit, self._gate.entered(key):
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._too_late() from None

    def _due(self, ask: Ask) -> Ask:
        """`ask`, due when a call that comes now must be answered, however many times it waits."""
        due = asyncio.get_running_loop().time() + self._config.limits.timeout_s
        repeatable = ask.key is not None or ask.retry is not None
        return replace(ask, due=due, fingerprint=fingerprint_of(ask.call) if repeatable else "")

    def _too_late(self) -> ApiError:
        return ApiError(504, f"no answer within {self._config.limits.timeout_s:g} s", retry_after_s=1)


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of `work` gives; when one fails, the others are given up."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # so that no call runs on behind its caller's back
