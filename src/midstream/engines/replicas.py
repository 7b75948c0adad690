"""Load balancing over several engines of the same model. A session stays with one replica, which caches its prefix.

Each process chooses the replica by rendezvous hashing (Thaler and Ravishankar 1998): each replica has a number derived
from its name and the session, and the largest wins. If a replica is unreachable, its sessions spread over all others,
and no other session moves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace

from midstream.core import clock
from midstream.core.errors import ConfigError, EngineUnreachable, Unsupported
from midstream.core.seeds import unit_interval
from midstream.engines.base import Capabilities, Completion, Engine, PolicyEngine, Request
from midstream.engines.pause import Pause
from midstream.engines.publication import Publication

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Replica:
    engine: Engine
    key: str
    under_way: int = 0
    rests_until: float = 0.0
    missed: dict[str, Publication] = field(default_factory=dict[str, Publication])
    """Weights, by adapter, that it could not be given; it loads them before its next call."""
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)


class Replicas:
    """Presents `engines` as one. An unreachable engine is skipped for `rest_s` seconds, unless no other is left; the
    call moves to the next one if no token has been delivered. A completion carries the version of the replica that
    answered. An engine that was unreachable when weights were published loads them before its next call."""

    def __init__(self, engines: Sequence[Engine], *, rest_s: float = 30.0, name: str = "replicas") -> None:
        if not engines:
            raise ConfigError("no replicas were given", "name at least one engine")
        self.name, self.engines, self._rest_s = name, tuple(engines), rest_s
        names = [engine.name for engine in engines]
        self._replicas = [
            _Replica(engine, f"{engine.name}#{names[:place].count(engine.name)}")
            for place, engine in enumerate(engines)
        ]
        self._pause = Pause()

    @property
    def policy_version(self) -> int:
        """The oldest version that may answer a call."""
        return min(
            max((p.version for p in one.missed.values()), default=one.engine.policy_version) for one in self._replicas
        )

    @property
    def behind(self) -> tuple[bool, ...]:
        """For each of `engines`, whether it has yet to load the weights published last."""
        return tuple(bool(one.missed) for one in self._replicas)

    @property
    def adapter(self) -> str:
        return self._policies()[0].adapter

    @property
    def context_length(self) -> int:
        return min(engine.context_length for engine in self.engines)

    def join(self, session: str) -> None:
        self._ranked(session)[0].engine.join(session)

    def leave(self, session: str) -> None:
        for engine in self.engines:
            engine.leave(session)

    async def pause(self) -> None:
        """Make new calls wait; returns once no replica has a call running."""
        await self._pause.pause()

    def resume(self) -> None:
        """Undo one `pause`."""
        self._pause.resume()

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Pause inside the context: no replica has a call running, and new calls wait."""
        return self._pause.exclusive()

    @property
    def tokens_sampled(self) -> int:
        return sum(engine.tokens_sampled for engine in self._policies())

    @property
    def tokens_prefilled(self) -> int:
        return sum(engine.tokens_prefilled for engine in self._policies())

    @property
    def capabilities(self) -> Capabilities:
        """Kinds of weights that every replica accepts."""
        all_of = [engine.capabilities for engine in self._policies()]
        return Capabilities(all(one.adapters for one in all_of), all(one.full for one in all_of))

    async def load_weights(self, publication: Publication) -> None:
        """Load `publication` into every replica. One that is unreachable loads it before its next call; raises
        `EngineUnreachable` if all are."""
        policies = self._policies()
        async with self.exclusive():
            failures: list[EngineUnreachable] = []
            for engine, replica in zip(policies, self._replicas, strict=True):
                try:
                    await engine.load_weights(publication)
                    replica.missed.pop(publication.adapter, None)
                except EngineUnreachable as error:
                    failures.append(error)
                    self._rest(replica)
                    replica.missed[publication.adapter] = publication
                    _log.warning("%s missed policy version %d: %s", engine.name, publication.version, error)
            if len(failures) == len(policies):
                raise failures[0]

    def frozen(self) -> Replicas:
        return Replicas([engine.frozen() for engine in self._policies()], rest_s=self._rest_s, name="frozen")

    def _policies(self) -> list[PolicyEngine]:
        policies = [engine for engine in self.engines if isinstance(engine, PolicyEngine)]
        if len(policies) < len(self.engines):
            raise Unsupported(f"{self.name}: not every replica takes weights")
        return policies

    async def generate(self, request: Request) -> Completion:
        async with self._pause.call():
            *others, last = self._ranked(request.session)
            delivered = 0

            def deliver(ids: Sequence[int], log_probs: Sequence[float]) -> None:
                nonlocal delivered
                delivered += len(ids)
                assert request.on_tokens is not None
                request.on_tokens(ids, log_probs)

            passed_on = replace(request, on_tokens=request.on_tokens and deliver)
            for replica in others:
                try:
                    return await self._ask(replica, passed_on)
                except EngineUnreachable:
                    if delivered:
                        raise
            return await self._ask(last, passed_on)

    async def _ask(self, replica: _Replica, request: Request) -> Completion:
        replica.under_way += 1
        try:
            await self._catch_up(replica)
            return await replica.engine.generate(request)
        except EngineUnreachable:
            self._rest(replica)
            raise
        finally:
            replica.under_way -= 1

    async def _catch_up(self, replica: _Replica) -> None:
        # One of several concurrent calls loads; the others wait for it.
        async with replica.loading if replica.missed else nullcontext():
            while replica.missed and isinstance(replica.engine, PolicyEngine):
                adapter, publication = next(iter(replica.missed.items()))
                await replica.engine.load_weights(publication)
                # Another publication may have come meanwhile.
                if replica.missed.get(adapter) is publication:
                    del replica.missed[adapter]

    def _rest(self, replica: _Replica) -> None:
        replica.rests_until = clock.monotonic() + self._rest_s

    def _ranked(self, session: str) -> list[_Replica]:
        """Return all replicas in order of preference; unreachable ones come last. A call without a session goes to the
        least busy replica."""
        now = clock.monotonic()

        def rank(replica: _Replica) -> tuple[bool, float]:
            own = -unit_interval("replica", replica.key, session) if session else replica.under_way
            return replica.rests_until > now, own

        return sorted(self._replicas, key=rank)
