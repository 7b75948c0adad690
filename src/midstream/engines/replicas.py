"""Load balancing over several engines of the same model. A session stays with one replica, which caches its prefix.

Each process chooses the replica by rendezvous hashing (Thaler and Ravishankar 1998): each replica has a number derived
from its name and the session, and the largest wins. If a replica is unreachable, its sessions spread over all others,
and no other session moves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from midstream.core import clock
from midstream.core.errors import ConfigError, EngineUnreachable, Unsupported
from midstream.core.seeds import unit_interval
from midstream.engines.base import Capabilities, Completion, Engine, PolicyEngine, Request
from midstream.engines.pause import Pause


@dataclass(slots=True)
class _Replica:
    engine: Engine
    key: str
    under_way: int = 0
    rests_until: float = 0.0


class Replicas:
    """Presents `engines` as one. An unreachable engine is skipped for `rest_s` seconds, unless no other is left; the
    call moves to the next one if no token has been delivered. A completion carries the version of the replica that
    answered."""

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
        return min(engine.policy_version for engine in self.engines)

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

    async def load_weights(self, folder: Path, version: int) -> None:
        policies = self._policies()
        async with self.exclusive():
            for engine in policies:
                await engine.load_weights(folder, version)

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
            return await replica.engine.generate(request)
        except EngineUnreachable:
            replica.rests_until = clock.monotonic() + self._rest_s
            raise
        finally:
            replica.under_way -= 1

    def _ranked(self, session: str) -> list[_Replica]:
        """Return all replicas in order of preference; unreachable ones come last. A call without a session goes to the
        least busy replica."""
        now = clock.monotonic()

        def rank(replica: _Replica) -> tuple[bool, float]:
            own = -unit_interval("replica", replica.key, session) if session else replica.under_way
            return replica.rests_until > now, own

        return sorted(self._replicas, key=rank)
