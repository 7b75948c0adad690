"""Several engines of the same model as one. A session stays with one of them, where its prefix is cached.

Which one, each process finds for itself by rendezvous hashing (Thaler and Ravishankar 1998): every replica has a number
drawn from its name and the session, and the largest wins. So sessions of a replica that does not answer go to all the
others, and no session of another moves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from midstream.core import clock
from midstream.core.errors import ConfigError, EngineUnreachable
from midstream.core.seeds import unit_interval
from midstream.engines.base import Completion, Engine, Request
from midstream.engines.pause import Pause


@dataclass(slots=True)
class _Replica:
    engine: Engine
    key: str
    under_way: int = 0
    rests_until: float = 0.0


class Replicas:
    """`engines` as one. One that cannot be reached is left out for `rest_s`, unless none is left; the call goes to the
    next, as long as nobody has heard a token of it. A completion carries the version of the replica that answered."""

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
        """The oldest that a call may be answered with."""
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
        """Have new calls wait; returns when no replica has one under way."""
        await self._pause.pause()

    def resume(self) -> None:
        """Let calls through again."""
        self._pause.resume()

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Inside, no replica has a call under way, and new ones wait."""
        return self._pause.exclusive()

    async def generate(self, request: Request) -> Completion:
        async with self._pause.call():
            *others, last = self._ranked(request.session)
            heard = 0

            def tell(ids: Sequence[int], log_probs: Sequence[float]) -> None:
                nonlocal heard
                heard += len(ids)
                assert request.on_tokens is not None
                request.on_tokens(ids, log_probs)

            passed_on = replace(request, on_tokens=request.on_tokens and tell)
            for replica in others:
                try:
                    return await self._ask(replica, passed_on)
                except EngineUnreachable:
                    if heard:
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
        """All replicas, the one to ask first at the front; those that rest come last. A call of no session goes where
        the fewest are."""
        now = clock.monotonic()

        def rank(replica: _Replica) -> tuple[bool, float]:
            own = -unit_interval("replica", replica.key, session) if session else replica.under_way
            return replica.rests_until > now, own

        return sorted(self._replicas, key=rank)
