"""Training on what others record: groups from a store, each learned from once, even by a run that was killed and
resumed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from midstream.agents.config import StoreSourceConfig
from midstream.core import clock
from midstream.core.errors import MidstreamError, RunError, TrainingError
from midstream.core.types import Trajectory
from midstream.record.group_states import Key, Leased
from midstream.record.store import Store

_log = logging.getLogger(__name__)
POLL_S = 0.25


class Drained(RunError):
    """No group became ready for as long as a step waits: the run ends."""


class GroupSource:
    """A store to take groups from, as `owner`: the name by which a resumed run finds what is its own."""

    def __init__(self, config: StoreSourceConfig, owner: str, stopping: Callable[[], bool]) -> None:
        self._config, self._owner, self._stopping = config, owner, stopping
        self._store = Store(config.store)
        self._renewing: asyncio.Task[None] | None = None

    async def take(self, count: int, min_version: int | None) -> list[Leased]:
        """`count` groups, or as many as are ready when the wait is over. Raises `Drained` when there is none."""
        self._let_go()
        self._renewing = asyncio.create_task(self._renew())
        try:
            return await self._lease(count, min_version)
        except BaseException:
            self._let_go()
            raise

    async def _lease(self, count: int, min_version: int | None) -> list[Leased]:
        config, held, began = self._config, list[Leased](), clock.monotonic()
        while len(held) < count:
            wanted = count - len(held)
            held += await asyncio.to_thread(
                self._store.groups.lease, self._owner, wanted, config.channel, config.lease_s, min_version
            )
            if len(held) == count or (held and clock.monotonic() - began > config.wait_s):
                break
            if self._stopping() or clock.monotonic() - began > config.wait_s:
                await asyncio.to_thread(self._store.groups.release, self._owner, [group.key for group in held])
                raise Drained(
                    f"no group of the channel '{config.channel}' in '{self._store.where}' is ready",
                    f"waited {config.wait_s:g} s (rollout.source.wait_s); --resume goes on when there are some: "
                    f"midstream store stats {self._store.where}",
                )
            await clock.sleep(POLL_S)
        return held

    async def _renew(self) -> None:
        """Hold what is held, however long the others take to come, and the step after them."""
        while True:
            await clock.sleep(self._config.lease_s / 3)
            try:
                await asyncio.to_thread(self._store.groups.renew, self._owner, self._config.lease_s)
            except (MidstreamError, DBAPIError):  # the next one may get through in time
                _log.warning("the lease of the groups in '%s' could not be renewed", self._store.where, exc_info=True)

    async def consume(self, keys: Collection[Key], step: int) -> None:
        """Mark the groups as learned from in this step."""
        self._let_go()
        await asyncio.to_thread(self._store.groups.consume, self._owner, keys, step)

    def _let_go(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    async def counts(self) -> dict[str, float]:
        """Groups by state."""
        return await asyncio.to_thread(self._store.groups.counts, self._config.channel)

    def back_to(self, step: int) -> None:
        """The run goes on from `step`: what it learned from after that is to be had again."""
        self._store.groups.reopen(self._owner, step)

    def close(self) -> None:
        self._store.close()


def check_there(config: StoreSourceConfig) -> None:
    """Raises `RunError` for a file that is not there: opening it would make a store that nobody fills."""
    if "://" not in config.store and not Path(config.store).is_file():
        raise RunError(f"no store at '{config.store}'", "give the one a gateway records into, and start that first")


def check_tokens(trajectory: Trajectory, vocabulary: int) -> None:
    """Raises `TrainingError` for tokens that are not the policy's."""
    highest = max((max((*s.prompt_ids, *s.response_ids), default=0) for s in trajectory.steps), default=0)
    if highest >= vocabulary:
        raise TrainingError(
            f"trajectory '{trajectory.uid}' holds the token {highest}, but the policy has {vocabulary}",
            "train the model that the gateway served",
        )
