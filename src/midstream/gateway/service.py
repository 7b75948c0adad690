"""The gateway and its parts; what it refuses before anything is computed, and what it does on its own while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from midstream.core import clock
from midstream.core.errors import NameTaken
from midstream.core.sampling import SamplingParams
from midstream.core.types import Step
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.config import GatewayConfig
from midstream.gateway.dialects.hints import template_arguments
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.metrics import Metrics
from midstream.gateway.limits.admission import AdmissionController
from midstream.gateway.limits.callers import Caller, Callers
from midstream.gateway.limits.length import check_length, rendered
from midstream.gateway.limits.tokens import TokenSigner
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.calls import Calls
from midstream.gateway.sessions.trajectories import Trajectories
from midstream.record.recorder import Call, RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rewards.judge import remote_judge
from midstream.store.servers import BEAT_S

_log = logging.getLogger(__name__)
MOST_WARNED = 50
"""Types of tools that the log warns of."""
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
        self.calls = Calls(config, role_engine, self.tokenizer, self.gate, self.trajectories, self.metrics)
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
            return self.config.held(SamplingParams(**settings))
        except ValueError as error:
            raise ApiError(400, str(error)) from None
