"""`Gateway`: composes the parts of a gateway around one engine and one store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from midstream.core.errors import Unsupported
from midstream.core.sampling import SamplingParams
from midstream.engines.base import PolicyEngine
from midstream.engines.chat import ChatTokenizer
from midstream.engines.publication import Publication
from midstream.gateway.config import GatewayConfig
from midstream.gateway.http.errors import ApiError
from midstream.gateway.http.metrics import Metrics
from midstream.gateway.limits.admission import AdmissionController
from midstream.gateway.limits.backpressure import check_backpressure
from midstream.gateway.limits.callers import Callers
from midstream.gateway.limits.tokens import TokenSigner
from midstream.gateway.sessions.active import ActiveTrajectory
from midstream.gateway.sessions.adapters import ServedAdapters
from midstream.gateway.sessions.calls import Calls
from midstream.gateway.sessions.trajectories import Trajectories
from midstream.gateway.sessions.upkeep import Upkeep
from midstream.plans import AgentExecutor
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rewards.judge import remote_judge

LARGEST_NUMBER = 2**63 - 1
"""Largest whole number that every engine takes."""


class Gateway:
    """Serves the model of `role_engine`. Without a store it serves the trajectories that a rollout attaches. Questions
    of the runs of `plans` can be answered here."""

    def __init__(
        self,
        config: GatewayConfig,
        role_engine: RoleEngine,
        store: Store | None,
        signer: TokenSigner,
        plans: AgentExecutor | None = None,
    ) -> None:
        if role_engine.tokenizer is None:
            raise ValueError("the gateway's engine must have a tokenizer")
        self.config, self.role_engine, self.store, self.signer = config, role_engine, store, signer
        self.plans = plans
        self.tokenizer: ChatTokenizer = role_engine.tokenizer
        self.served = ServedAdapters(role_engine)
        self.callers = Callers(config.keys, signer, allow_anonymous=store is not None and not config.keys)
        self.admission = AdmissionController(config.limits, config.keys)
        reward = config.reward
        self.reward = None if reward is None else RewardFunction(reward, remote_judge(reward.judge)).single_trajectory()
        self.trajectories = Trajectories(config, store, role_engine, self.reward)
        self.upkeep = Upkeep(config, store, self.trajectories, self.admission)
        self.metrics = Metrics(self)
        self.calls = Calls(config, self.served, self.tokenizer, self.admission, self.trajectories, self.metrics)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model, then those of its adapters if there are several."""
        return tuple(dict.fromkeys((self.config.model, *self.config.aliases, *self.served.names)))

    def policy_version(self, name: str = "") -> int:
        """Return the version of the weights that answer requests for the model `name`."""
        return self.served.version(name)

    def require_store(self) -> Store:
        """Return the store. Raises `ApiError` 404 in a rollout, which records by itself."""
        if self.store is None:
            raise ApiError(404, "this gateway serves a rollout, which keeps the records itself")
        return self.store

    def model_name(self, name: str | None, active: ActiveTrajectory | None = None) -> str:
        """Return the model of a request: the one served, one of its adapters, or a role of its rollout. Raises
        `ApiError` 404 for any other."""
        names = (*self.names, *(active.role_engines if active is not None else ()))
        if name is not None and name not in names:
            served = ", ".join(dict.fromkeys(names))
            raise ApiError(404, f"there is no model '{name}'; this gateway serves {served}", code="model_not_found")
        return name or self.names[0]

    def checked_ids(self, ids: Sequence[int], param: str) -> tuple[int, ...]:
        """Return `ids`. Raises `ApiError` 400 if they do not fit the context or one is not a token of the model."""
        size, most = len(self.tokenizer), self.role_engine.engine.context_length
        if len(ids) > most:
            raise ApiError(400, f"{len(ids)} tokens do not fit the context of {most}", param=param)
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise ApiError(400, f"{wrong} is not a token of {self.names[0]} (0 to {size - 1})", param=param)
        return tuple(ids)

    def sampling(self, **requested: Any) -> SamplingParams:
        """Return the sampling parameters of a request; None takes the default. Raises `ApiError` 400."""
        settings = {name: value for name, value in requested.items() if value is not None}
        for name, value in settings.items():
            if isinstance(value, int) and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
                raise ApiError(400, f"{name} is too large: at most {LARGEST_NUMBER} is allowed", param=name)
        if not all(settings.get("stop", ())):
            raise ApiError(400, "an empty stop string would stop every reply before it begins", param="stop")
        settings.setdefault("max_tokens", self.config.limits.max_response_tokens)
        try:
            return self.config.with_fixed_sampling(SamplingParams(**settings))
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    async def require_capacity(self, channel: str | None) -> None:
        """Check that a trajectory may be opened. Raises `ApiError` 429 while training is behind, 503 while stopping."""
        self.admission.require_open()
        limits, engine = self.config.backpressure, self.role_engine.engine
        await check_backpressure(limits, self.require_store(), engine, channel or self.config.channel)

    async def load_weights(self, publication: Publication) -> None:
        """Answer with the weights of `publication` from now on, as a subscriber of a run. A request whose model is the
        name of an adapter gets that one, once several are loaded. Raises `Unsupported` if the engine takes no
        weights."""
        engine = self.role_engine.engine
        if not isinstance(engine, PolicyEngine):
            raise Unsupported(f"{engine.name} takes no weights")

        async def load() -> None:
            await engine.load_weights(publication)
            self.served.loaded(publication)

        await self.update(load)

    async def update(self, load: Callable[[], Awaitable[None]]) -> None:
        """Load new weights into the engine. New calls wait meanwhile, so that none mixes two versions."""
        self.admission.pause("update")
        try:
            await load()
        finally:
            self.admission.resume("update")
