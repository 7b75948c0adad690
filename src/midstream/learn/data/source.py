"""Trains on groups recorded in a store. Each group is learned from once, even by a run that is killed and resumed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from midstream.core import clock
from midstream.core.errors import MidstreamError, RunError, TrainingError
from midstream.core.types import Trajectory
from midstream.learn.rollout_config import StoreSourceConfig
from midstream.record.group_states import Key, Leased
from midstream.record.store import Store

_log = logging.getLogger(__name__)
POLL_S = 0.25


class SourceExhausted(RunError):
    """No group became ready within the wait time of a training step, so the run ends."""


class GroupSource:
    """Leases groups from a store as `owner`, the name under which a resumed run finds its own leases."""

    def __init__(self, config: StoreSourceConfig, owner: str, stopping: Callable[[], bool]) -> None:
        self._config, self._owner, self._stopping = config, owner, stopping
        self._store = Store(config.store)
        self._renewing: asyncio.Task[None] | None = None

    async def lease(self, count: int, min_version: int | None) -> list[Leased]:
        """Lease `count` groups, or as many as are ready after the wait time. Raises `SourceExhausted` when there is
        none."""
        self._stop_renewing()
        self._renewing = asyncio.create_task(self._renew())
        try:
            return await self._wait_for_groups(count, min_version)
        except BaseException:
            self._stop_renewing()
            raise

    async def _wait_for_groups(self, count: int, min_version: int | None) -> list[Leased]:
        config, leased, began = self._config, list[Leased](), clock.monotonic()
        while len(leased) < count:
            missing = count - len(leased)
            leased += await asyncio.to_thread(
                self._store.groups.lease, self._owner, missing, config.channel, config.lease_s, min_version
            )
            if len(leased) == count or (leased and clock.monotonic() - began > config.wait_s):
                break
            if self._stopping() or clock.monotonic() - began > config.wait_s:
                await asyncio.to_thread(self._store.groups.release, self._owner, [group.key for group in leased])
                raise SourceExhausted(
                    f"no group of the channel '{config.channel}' in '{self._store.where}' is ready",
                    f"waited {config.wait_s:g} s (rollout.source.wait_s); --resume continues when groups are ready: "
                    f"midstream store stats {self._store.where}",
                )
            await clock.sleep(POLL_S)
        return leased

    async def _renew(self) -> None:
        """Renew the leases until the training step is done."""
        while True:
            await clock.sleep(self._config.lease_s / 3)
            try:
                await asyncio.to_thread(self._store.groups.renew, self._owner, self._config.lease_s)
            except (MidstreamError, DBAPIError):  # the next attempt may succeed in time
                _log.warning("the lease of the groups in '%s' could not be renewed", self._store.where, exc_info=True)

    async def consume(self, keys: Collection[Key], step: int) -> None:
        """Mark the groups as learned from in training step `step`."""
        self._stop_renewing()
        await asyncio.to_thread(self._store.groups.consume, self._owner, keys, step)

    def _stop_renewing(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()

    async def counts(self) -> dict[str, float]:
        """Return the number of groups by state."""
        return await asyncio.to_thread(self._store.groups.counts, self._config.channel)

    def rewind_to(self, step: int) -> None:
        """Reopen the groups consumed after `step`, for a run that resumes there."""
        self._store.groups.reopen(self._owner, step)

    def close(self) -> None:
        self._store.close()


def check_store_exists(config: StoreSourceConfig) -> None:
    """Raise `RunError` when the store's file does not exist: opening it would create a store that nobody fills."""
    if "://" not in config.store and not Path(config.store).is_file():
        raise RunError(
            f"no store at '{config.store}'", "give the store that a gateway records into, and start the gateway first"
        )


def check_tokens(trajectory: Trajectory, vocabulary: int) -> None:
    """Raise `TrainingError` when a token is outside the policy's vocabulary."""
    highest = max((max((*s.prompt_ids, *s.response_ids), default=0) for s in trajectory.steps), default=0)
    if highest >= vocabulary:
        raise TrainingError(
            f"trajectory '{trajectory.uid}' holds the token {highest}, but the policy's vocabulary has {vocabulary}",
            "train the model that the gateway served",
        )
