"""`Calls`: answers call requests. Each call is admitted to the engine and written to disk before it is acknowledged."""

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
from midstream.gateway.limits.length import check_length, rendered
from midstream.gateway.sessions.active import ActiveTrajectory, ended_error
from midstream.gateway.sessions.adapters import ServedAdapters
from midstream.gateway.sessions.answer import Answer, AnswerStream, answer_of, new_answer_id
from midstream.gateway.sessions.call_request import CallRequest, Piece, fingerprint_of, pieces_of, replayed_pieces
from midstream.gateway.sessions.sdk_retries import OWN_KEY, Attempt
from midstream.gateway.sessions.trajectories import Trajectories
from midstream.record.recorder import Call, Recorder, RoleEngine

T = TypeVar("T")
DISCONNECTED = "the client disconnected"


class Calls:
    """Answers calls to one model."""

    def __init__(
        self,
        config: GatewayConfig,
        served: ServedAdapters,
        tokenizer: ChatTokenizer,
        admission: AdmissionController,
        trajectories: Trajectories,
        metrics: Metrics,
    ) -> None:
        self._config, self._served, self._tokenizer = config, served, tokenizer
        self._admission, self._trajectories, self._metrics = admission, trajectories, metrics

    async def require_fit(self, active: ActiveTrajectory, request: CallRequest) -> None:
        """Raise `PromptTooLong` for a prompt that cannot fit the engine's context."""
        role_engine, call = self._resolve(active, request)
        if call.prompt_ids is None:
            tokenizer = role_engine.tokenizer or self._tokenizer
            await check_length(tokenizer, role_engine.engine.context_length, call.messages, call.tools)

    async def answer(self, active: ActiveTrajectory, request: CallRequest, caller: Caller) -> list[Answer]:
        """Return all answers in order, once they are on disk."""
        request, attempt = self._with_retry_key(active, self._with_deadline(request))
        async with self._in_use(active, request) as known:
            answers = {choice: self._replayed(step) for choice, step in known.items()}
            missing = [choice for choice in range(request.choices) if choice not in known]
            new = await _gather([self._answer_one(active, request, caller, choice) for choice in missing])
            answers |= zip(missing, new, strict=True)
            if attempt is not None:
                attempt.delivered = True
            return [answer for _, answer in sorted(answers.items())]

    async def stream(self, active: ActiveTrajectory, request: CallRequest, caller: Caller) -> AsyncGenerator[Piece]:
        """Yield the answers as they are sampled: deltas in any order of choices, then each choice's answer, once it is
        on disk. Closing the iterator cancels the unfinished ones."""
        request, attempt = self._with_retry_key(active, self._with_deadline(request))
        pieces = asyncio.Queue[Piece | Exception]()

        async def make(choice: int) -> None:
            try:
                answer = await self._answer_one(active, request, caller, choice, pieces.put_nowait)
                pieces.put_nowait(Piece(choice, answer.id, answer=answer, prompt_tokens=len(answer.step.prompt_ids)))
            except Exception as error:
                pieces.put_nowait(error)

        async with self._in_use(active, request) as known:
            making = [asyncio.create_task(make(choice)) for choice in range(request.choices) if choice not in known]
            try:
                for choice, step in sorted(known.items()):
                    answer = self._replayed(step)
                    for piece in replayed_pieces(choice, answer, self._tokenizer):
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
                    task.cancel(DISCONNECTED)
                # A finished answer is written before the request ends: a retry must find it.
                await asyncio.gather(*making, return_exceptions=True)

    async def generate(
        self, prompt_ids: tuple[int, ...], sampling: SamplingParams, caller: Caller, model: str = ""
    ) -> Step:
        """Sample a response outside of any trajectory. It is not recorded: the caller submits the step."""
        call = Call(prompt_ids=prompt_ids, sampling=self._config.with_fixed_sampling(sampling))
        uid, role_engine = uuid.uuid4().hex, self._served.role_engine(model)
        async with self._admitted(caller.key, asyncio.get_running_loop().time() + self._config.limits.timeout_s):
            try:
                step, _ = await Recorder(uid, "", seed=uuid.uuid4().int >> 65).call(role_engine, call)
            finally:
                role_engine.engine.leave(uid)
        return step

    async def count_tokens(self, call: Call, active: ActiveTrajectory, caller: Caller) -> int:
        """Return the length of the prompt that begins a conversation, within the limits of the caller's key. Raises
        `PromptTooLong` for a prompt that cannot fit, and `Unsupported` if the template refuses it."""
        with self._admission.counted(caller.key or active.key):
            context_length = self._served.role_engine("").engine.context_length
            await check_length(self._tokenizer, context_length, call.messages, call.tools)
            arguments = template_arguments(call.metadata, self._tokenizer.reads)
            return len(await rendered(self._tokenizer, call.messages, call.tools, arguments))

    def effective_sampling(self, active: ActiveTrajectory, request: CallRequest) -> SamplingParams:
        """Return the sampling parameters that will be used."""
        return self._resolve(active, request)[1].sampling

    def _with_retry_key(self, active: ActiveTrajectory, request: CallRequest) -> tuple[CallRequest, Attempt | None]:
        """Give a key of ours to a request from an SDK that retries without one."""
        if request.key is not None or request.retry is None:
            return request, None
        attempt = active.retries.find(request, active.recorder.finished()) if request.retry else None
        if attempt is None:
            attempt = active.retries.add(request.call, f"{OWN_KEY}{new_answer_id()}")
        return replace(request, key=attempt.key), attempt

    @asynccontextmanager
    async def _in_use(self, active: ActiveTrajectory, request: CallRequest) -> AsyncIterator[dict[int, Step]]:
        """Keep the trajectory in use during a request. Gives the steps already made for its key, by choice."""
        if active.recorder.already_ended:
            self._trajectories.ended_in_store(active)
        if active.ended is not None:
            raise ended_error(active)
        if request.choices > self._config.limits.choices:
            raise ApiError(400, f"n is {request.choices}; at most {self._config.limits.choices} are allowed", param="n")
        active.in_flight += 1
        try:
            if request.key is None:
                yield {}
            else:
                async with AsyncExitStack() as alone:
                    yield await self._finished_steps(active, request, alone)
        finally:
            active.in_flight -= 1
            active.touch()

    async def _finished_steps(
        self, active: ActiveTrajectory, request: CallRequest, alone: AsyncExitStack
    ) -> dict[int, Step]:
        """Return the steps already made for the request's key, after concurrent requests with it have finished. `alone`
        makes later ones wait until it is closed. Raises `ApiError` 409 if the key was used for another call."""
        assert request.key is not None
        try:
            async with asyncio.timeout_at(request.due):
                await alone.enter_async_context(active.answering.get(request.key))
        except TimeoutError:
            raise self._timeout() from None
        known = active.recorded(request.key)
        for step in known.values():
            if step.metadata.get("call_fingerprint") not in (None, request.fingerprint):
                raise ApiError(
                    409,
                    f"the idempotency key '{request.key}' was used for another call; use a new key for each call, and "
                    "the same key only to repeat that call",
                    code="idempotency_key_reused",
                )
        return {choice: step for choice, step in known.items() if choice < request.choices}

    def _resolve(self, active: ActiveTrajectory, request: CallRequest) -> tuple[RoleEngine, Call]:
        """Return the engine that answers and the call to it. A rollout's sampling overrides what its agent asks for."""
        call = request.call
        if not active.role_engines:
            return self._served.role_engine(request.model), replace(call, role=request.role or "policy")
        role = next((name for name in (request.role or "", call.role) if name in active.role_engines), "policy")
        configured = active.sampling[role]
        requested = call.sampling
        sampling = replace(
            configured,
            max_tokens=min(requested.max_tokens, configured.max_tokens),
            stop=requested.stop or configured.stop,
        )
        return active.role_engines[role], replace(call, role=role, sampling=sampling)

    def _replayed(self, step: Step) -> Answer:
        self._metrics.replayed.inc()
        return answer_of(step, self._tokenizer)

    async def _answer_one(
        self,
        active: ActiveTrajectory,
        request: CallRequest,
        caller: Caller,
        choice: int,
        emit: Callable[[Piece], None] | None = None,
    ) -> Answer:
        """Make one choice of a request; `emit` gets its deltas."""
        role_engine, call = self._resolve(active, request)
        if call.metadata.get("hints") and role_engine.tokenizer is not None:
            call = replace(call, template=template_arguments(call.metadata, role_engine.tokenizer.reads))
        answer_id = new_answer_id()
        metadata: dict[str, Any] = {**call.metadata, "answer_id": answer_id}
        if request.key is not None:
            metadata["idempotency_key"] = request.key
        if request.fingerprint:
            metadata["call_fingerprint"] = request.fingerprint
            call = replace(call, keep_top_log_probs=True)
        if request.choices > 1:
            metadata["choice"] = choice
            if call.sampling.seed is not None:
                call = replace(call, sampling=replace(call.sampling, seed=call.sampling.seed + choice))
        call = replace(call, metadata=metadata)
        if emit is None:
            return self._acknowledge(active, *await self._call(active, role_engine, call, caller, request.due))
        stream = AnswerStream(self._tokenizer, call.tools, call.sampling.stop, plain=not call.messages)
        prompt_tokens = 0

        def on_prompt(size: int) -> None:
            nonlocal prompt_tokens
            prompt_tokens = size

        def on_tokens(ids: Sequence[int], log_probs: Sequence[float]) -> None:
            for piece in pieces_of(choice, answer_id, stream, ids, log_probs, prompt_tokens):
                emit(piece)

        call = replace(call, on_tokens=on_tokens, on_prompt=on_prompt)
        outcome = await self._call(active, role_engine, call, caller, request.due)
        for delta in stream.close():
            emit(Piece(choice, answer_id, delta, prompt_tokens=prompt_tokens))
        return self._acknowledge(active, *outcome)

    async def _call(
        self, active: ActiveTrajectory, role_engine: RoleEngine, call: Call, caller: Caller, due: float
    ) -> tuple[Step, Completion]:
        async with self._admitted(caller.key or active.key, due):
            return await active.recorder.call(role_engine, call)

    def _acknowledge(self, active: ActiveTrajectory, step: Step, completion: Completion) -> Answer:
        if active.recorder.already_ended:
            self._trajectories.ended_in_store(active)
        if active.ended is not None:
            self._metrics.late.inc()
        self._metrics.count_step(step, None if step.parent is None else active.recorder.steps[step.parent])
        answer = answer_of(step, self._tokenizer, completion)
        self._metrics.malformed.inc(answer.reply.malformed_calls)
        return answer

    @asynccontextmanager
    async def _admitted(self, key: str | None, due: float) -> AsyncIterator[None]:
        """Hold a place in the engine, at most until `due`, within the limits of `key`."""
        limit = asyncio.timeout_at(due)
        try:
            async with limit, self._admission.admitted(key):
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._timeout() from None

    def _with_deadline(self, request: CallRequest) -> CallRequest:
        """Set the deadline of a request that arrives now, and its fingerprint if it may be repeated."""
        due = asyncio.get_running_loop().time() + self._config.limits.timeout_s
        repeatable = request.key is not None or request.retry is not None
        adapter = self._served.adapter(request.model)
        return replace(request, due=due, fingerprint=fingerprint_of(request.call, adapter) if repeatable else "")

    def _timeout(self) -> ApiError:
        return ApiError(504, f"no answer within {self._config.limits.timeout_s:g} s", retry_after_s=1)


async def _gather(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of all coroutines; if one fails, cancel the others."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # no call may continue after its request has ended
