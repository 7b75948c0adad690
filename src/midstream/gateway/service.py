"""The gateway itself, whatever dialect comes in: who is asking, which trajectory, a place at the engine, one or more
answers, each on disk before it is acknowledged."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from midstream.core import clock
from midstream.core.errors import NameTaken
from midstream.core.sampling import SamplingParams
from midstream.core.types import Step
from midstream.engines.base import Completion
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.active import ActiveTrajectory, ended
from midstream.gateway.admission import AdmissionController
from midstream.gateway.answer import Answer, AnswerStream, answer_of, new_answer_id
from midstream.gateway.asks import Ask, Piece, fingerprint_of, pieces_again, pieces_of
from midstream.gateway.callers import Caller, Callers
from midstream.gateway.config import GatewayConfig
from midstream.gateway.dialects.hints import template_arguments
from midstream.gateway.errors import ApiError
from midstream.gateway.length import check_length, rendered
from midstream.gateway.metrics import Metrics
from midstream.gateway.retries import OWN_KEY, Attempt
from midstream.gateway.tokens import TokenSigner
from midstream.gateway.trajectories import Trajectories
from midstream.record.recorder import Call, Recorder, RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rewards.judge import remote_judge
from midstream.store.servers import BEAT_S

T = TypeVar("T")
_log = logging.getLogger(__name__)
MOST_WARNED = 50
"""Types of tools that the log warns of."""
HUNG_UP = "the client hung up"
LARGEST = 2**63 - 1
"""Of the whole numbers that every engine takes."""


class Gateway:
    """Serves one model's trajectories from one store."""

    def __init__(
        self, config: GatewayConfig, role_engine: RoleEngine, store: Store | None, signer: TokenSigner
    ) -> None:
        if role_engine.tokenizer is None:
            raise ValueError("the gateway's engine must speak tokens")
        self.config, self.role_engine, self.store, self.signer = config, role_engine, store, signer
        self.tokenizer: ChatTokenizer = role_engine.tokenizer
        self._callers = Callers(config.keys, signer, open_to_all=store is not None and not config.keys)
        self.names = (config.model, *config.aliases)
        self.gate = AdmissionController(config.limits, config.keys)
        reward = config.reward
        self.reward = None if reward is None else RewardFunction(reward, remote_judge(reward.judge)).single_trajectory()
        self.trajectories = Trajectories(
            store,
            role_engine,
            name=config.called(),
            channel=config.channel,
            group_size=config.group_size,
            group_timeout_s=config.group_timeout_s,
            expiry_s=config.expiry_s,
            reward=self.reward,
            prefix_ignore=config.prefix_ignore,
        )
        self.metrics = Metrics(self)
        self._warned: set[str] = set()

    def caller(self, *secrets: str) -> Caller:
        """Who holds one of `secrets`, the values of an Authorization and an x-api-key header; `ApiError` 401 when
        nobody does."""
        return self._callers.of_any(secrets)

    @property
    def kept(self) -> Store:
        """The store; `ApiError` 404 where a rollout keeps its own."""
        if self.store is None:
            raise ApiError(404, "this gateway serves a rollout, which keeps what is recorded")
        return self.store

    def model_name(self, name: str | None, live: ActiveTrajectory | None = None) -> str:
        """The model a request gets: the one served, or a role of its rollout. `ApiError` 404 for any other."""
        names = (*self.names, *(live.role_engines if live is not None else ()))
        if name is not None and name not in names:
            served = ", ".join(dict.fromkeys(names))
            raise ApiError(
                404, f"there is no model '{name}' here; this gateway serves {served}", code="model_not_found"
            )
        return name or self.names[0]

    def leave_out(self, tools: Sequence[str]) -> list[str]:
        """Count hosted tools, by type, that a call offers its model and that are not here; the first of each is a
        warning in the log."""
        for tool in tools:
            self.metrics.left_out(tool)
            if tool not in self._warned and len(self._warned) < MOST_WARNED:
                self._warned.add(tool)
                _log.warning("the tool '%s' that a client offers is not here: the model is not shown it", tool)
        return list(tools)

    def checked_ids(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        """`ids` as a prompt or a response; `ApiError` 400 when one is no token of the model."""
        size, most = len(self.tokenizer), self.role_engine.engine.context_length
        if len(ids) > most:
            raise ApiError(400, f"{len(ids)} tokens do not fit the context of {most}", param=param)
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise ApiError(400, f"{wrong} is not a token of {self.names[0]} (0 to {size - 1})", param=param)
        return tuple(ids)

    async def must_fit(self, live: ActiveTrajectory, ask: Ask) -> None:
        """Raises `PromptTooLong` for a call whose prompt cannot fit the context of whoever answers it."""
        role_engine, call = self._spoken(live, ask)
        if call.prompt_ids is None:
            tokenizer = role_engine.tokenizer or self.tokenizer
            await check_length(tokenizer, role_engine.engine.context_length, call.messages, call.tools)

    async def count_tokens(self, call: Call, live: ActiveTrajectory, caller: Caller) -> int:
        """How many tokens the prompt of a call has that begins a conversation, within the limits of the caller's key.
        Raises `PromptTooLong` for one that cannot fit the context, as it is not encoded, and `Unsupported` when the
        template refuses it."""
        with self.gate.counted(caller.key or live.key):
            await check_length(self.tokenizer, self.role_engine.engine.context_length, call.messages, call.tools)
            arguments = template_arguments(call.metadata, self.tokenizer.reads)
            return len(await rendered(self.tokenizer, call.messages, call.tools, arguments))

    def check_step(self, step: Step, param: str) -> None:
        """`ApiError` 400 for a step that no policy of this gateway can have made."""
        engine, size = self.role_engine.engine, len(step.prompt_ids) + len(step.response_ids)
        if size > engine.context_length:
            raise ApiError(400, f"{size} tokens do not fit the context of {engine.context_length}", param=param)
        if step.policy_version > engine.policy_version:
            told = f"policy version {step.policy_version} is not there yet: the newest is {engine.policy_version}"
            raise ApiError(400, told, param=f"{param}.policy_version")

    async def check_backpressure(self, channel: str | None) -> None:
        """`ApiError` 429 while the trainer of a channel must catch up, 503 when this gateway is stopping."""
        self.gate.must_be_open()
        rules, told, channel = self.config.backpressure, "", channel or self.config.channel
        if rules.max_ready_groups is not None:
            ready = await asyncio.to_thread(self.kept.groups.ready_count, channel)
            if ready >= rules.max_ready_groups:
                told = f"{ready} groups of the channel '{channel}' wait for training already"
        if rules.max_staleness is not None:
            oldest = await asyncio.to_thread(self.kept.groups.oldest_ready_version, channel)
            age = 0 if oldest is None else self.role_engine.engine.policy_version - oldest
            if age > rules.max_staleness:
                told = f"a group that waits for training is {age} policy versions old"
        if told:
            raise ApiError(429, f"{told}; open trajectories later", code="backpressure", retry_after_s=5)

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
                    for piece in pieces_again(choice, answer, self.tokenizer):
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

    def _attempted(self, live: ActiveTrajectory, ask: Ask) -> tuple[Ask, Attempt | None]:
        """`ask` with a key of ours, where it comes from an SDK that may make it again without one of its own."""
        if ask.key is not None or ask.retry is None:
            return ask, None
        attempt = live.retries.again(ask.call, live.recorder.finished()) if ask.retry else None
        if attempt is None:
            attempt = live.retries.first(ask.call, f"{OWN_KEY}{new_answer_id()}")
        return replace(ask, key=attempt.key), attempt

    @asynccontextmanager
    async def _called(self, live: ActiveTrajectory, ask: Ask) -> AsyncIterator[dict[int, Step]]:
        """Inside, `ask` is under way; gives the steps that were made for its key already, by choice."""
        if live.recorder.over:
            self.trajectories.was_ended(live)
        if live.ended is not None:
            raise ended(live)
        if ask.choices > self.config.limits.choices:
            raise ApiError(400, f"n is {ask.choices}; at most {self.config.limits.choices} are given", param="n")
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

    async def generate(self, prompt_ids: tuple[int, ...], sampling: SamplingParams, caller: Caller) -> Step:
        """A response to token ids that belongs to no trajectory and is not recorded: its caller submits the step."""
        call = Call(prompt_ids=prompt_ids, sampling=self._held(sampling))
        uid = uuid.uuid4().hex
        async with self._place(caller.key, asyncio.get_running_loop().time() + self.config.limits.timeout_s):
            try:
                step, _ = await Recorder(uid, "", seed=uuid.uuid4().int >> 65).call(self.role_engine, call)
            finally:
                self.role_engine.engine.leave(uid)
        return step

    async def update(self, swap: Callable[[], Awaitable[None]]) -> None:
        """Change the engine's weights by `swap`: new calls wait, so that none sees two versions."""
        self.gate.pause("update")
        try:
            await swap()
        finally:
            self.gate.resume("update")

    async def watch(self) -> None:
        """Close silent trajectories, and tell the store that this gateway lives, for as long as this runs."""
        await asyncio.gather(self._close_silent(), self._beat())

    async def _beat(self) -> None:
        while True:
            await clock.sleep(BEAT_S)
            try:
                await self.trajectories.beat()
            except NameTaken as error:
                _log.error("%s", error)
                self.gate.close(error.message)
                return
            except Exception:  # the next one may get through
                _log.exception("the store could not be told that this gateway lives")

    async def _close_silent(self) -> None:
        every_s = min(1.0, self.config.expiry_s / 4)
        while True:
            await clock.sleep(every_s)
            try:
                await self.trajectories.expire()
            except Exception:  # whatever it was, those that fall silent later must be closed all the same
                _log.exception("silent trajectories could not be closed")

    def sampling(self, **asked: Any) -> SamplingParams:
        """Sampling parameters of a request; what it left out is `None`."""
        settings = {name: value for name, value in asked.items() if value is not None}
        for name, value in settings.items():
            if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
                raise ApiError(400, f"{name} is too large a number: at most {LARGEST} is taken", param=name)
        if not all(settings.get("stop", ())):
            raise ApiError(400, "an empty stop string would stop every reply before it begins", param="stop")
        settings.setdefault("max_tokens", self.config.limits.max_response_tokens)
        try:
            return self._held(SamplingParams(**settings))
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    def sampled_as(self, live: ActiveTrajectory, ask: Ask) -> SamplingParams:
        """The sampling settings that hold for `ask`."""
        return self._spoken(live, ask)[1].sampling

    def _spoken(self, live: ActiveTrajectory, ask: Ask) -> tuple[RoleEngine, Call]:
        """Who answers, and how: a rollout's sampling settings hold, whatever its agent asks for."""
        call = ask.call
        if not live.role_engines:
            return self.role_engine, replace(call, role=ask.role or "policy")
        role = next((name for name in (ask.role or "", call.role) if name in live.role_engines), "policy")
        held = live.sampling[role]
        asked = call.sampling
        sampling = replace(held, max_tokens=min(asked.max_tokens, held.max_tokens), stop=asked.stop or held.stop)
        return live.role_engines[role], replace(call, role=role, sampling=sampling)

    def _held(self, sampling: SamplingParams) -> SamplingParams:
        fixed = self.config.sampling
        return replace(sampling, **{n: int(v) if n == "top_k" else v for n, v in fixed.items()}) if fixed else sampling

    def _replayed(self, step: Step) -> Answer:
        self.metrics.replayed.inc()
        return answer_of(step, self.tokenizer)

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
        stream = AnswerStream(self.tokenizer, call.tools, call.sampling.stop, plain=not call.messages)
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
        if live.recorder.over:
            self.trajectories.was_ended(live)
        if live.ended is not None:
            self.metrics.late.inc()
        self.metrics.recorded(step, None if step.parent is None else live.recorder.steps[step.parent])
        answer = answer_of(step, self.tokenizer, completion)
        self.metrics.malformed.inc(answer.reply.malformed_calls)
        return answer

    @asynccontextmanager
    async def _place(self, key: str | None, due: float) -> AsyncIterator[None]:
        """A place at the engine, until the call is `due`, within the limits of `key`."""
        limit = asyncio.timeout_at(due)
        try:
            async with limit, self.gate.entered(key):
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._too_late() from None

    def _due(self, ask: Ask) -> Ask:
        """`ask`, due when a call that comes now must be answered, however many times it waits."""
        due = asyncio.get_running_loop().time() + self.config.limits.timeout_s
        return replace(ask, due=due, fingerprint="" if ask.key is None else fingerprint_of(ask.call))

    def _too_late(self) -> ApiError:
        return ApiError(504, f"no answer within {self.config.limits.timeout_s:g} s", retry_after_s=1)


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
