"""Background work of the gateway: closes silent trajectories, sends heartbeats to the store, and takes over the
trajectories of gateways that died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from midstream.core import clock
from midstream.core.errors import MidstreamError, NameTaken
from midstream.core.types import Status
from midstream.gateway.config import GatewayConfig
from midstream.gateway.http.errors import ApiError
from midstream.gateway.limits.admission import AdmissionController
from midstream.gateway.sessions.trajectories import Trajectories
from midstream.record.store import Store
from midstream.store.servers import BEAT_S

_log = logging.getLogger(__name__)
IDLE_S = 120.0
"""Time without a call after which a trajectory is evicted from memory."""
CLOSED_AT_ONCE = 256
"""Silent trajectories closed concurrently, so that they share transactions."""


class Upkeep:
    """Background work of one gateway. Registers the gateway in its store under the config's name; raises `NameTaken` if
    that name is in use."""

    def __init__(
        self, config: GatewayConfig, store: Store | None, trajectories: Trajectories, admission: AdmissionController
    ) -> None:
        self._expiry_s, self._group_timeout_s = config.expiry_s, config.group_timeout_s
        self._store, self._trajectories, self._admission = store, trajectories, admission
        self.adopted = 0
        """Number of trajectories taken over from gateways that died."""
        if store is not None:
            self._adopt(store.servers.join(config.server_name()).adopted)

    async def run(self) -> None:
        """Run until cancelled."""
        await asyncio.gather(self._close_silent(), self._send_heartbeats())

    async def expire(self) -> int:
        """Close trajectories that were silent for too long and evict idle ones. Return the number closed."""
        trajectories, now, late = self._trajectories, clock.monotonic(), list[str]()
        for active in list(trajectories.in_memory.values()):
            silent_s = 0.0 if active.in_flight or active.role_engines else now - active.touched
            if silent_s > self._expiry_s:
                late.append(active.uid)
            elif silent_s > IDLE_S:
                trajectories.evicted[active.uid] = active.touched
                trajectories.evict(active)
        late += [uid for uid, since in trajectories.evicted.items() if now - since > self._expiry_s]
        closed = 0
        for first in range(0, len(late), CLOSED_AT_ONCE):
            closed += sum(await asyncio.gather(*map(self._close, late[first : first + CLOSED_AT_ONCE])))
        return closed

    async def beat(self) -> None:
        """Send a heartbeat and take over the trajectories of gateways that died. Raises `NameTaken`."""
        assert self._store is not None
        trajectories = self._trajectories
        before = [active for active in trajectories.in_memory.values() if active.ended is None]
        beat = await asyncio.to_thread(self._store.servers.beat)
        if beat.lost:
            _log.warning("this gateway was presumed dead: another one may hold its trajectories now")
        oldest_s = max((clock.monotonic() - active.began for active in before), default=0.0)
        if beat.lost or (self._group_timeout_s is not None and oldest_s > self._group_timeout_s):
            still_held = set(await asyncio.to_thread(self._store.trajectories.open_uids))
            for active in before:
                if active.uid in still_held or active.ended is not None:
                    continue
                stored = await trajectories.load(active.uid)
                if stored is not None and stored.status is not Status.RUNNING:
                    trajectories.ended_in_store(active)
                elif beat.lost:
                    trajectories.evict(active)
            for uid in trajectories.evicted.keys() - still_held:
                del trajectories.evicted[uid]
        self._adopt(beat.adopted)

    async def _close_silent(self) -> None:
        while True:
            await clock.sleep(min(1.0, self._expiry_s / 4))
            try:
                await self.expire()
            except Exception:  # one failure must not keep later ones open
                _log.exception("cannot close silent trajectories")

    async def _send_heartbeats(self) -> None:
        while True:
            await clock.sleep(BEAT_S)
            try:
                await self.beat()
            except NameTaken as error:
                _log.error("%s", error)
                self._admission.close(error.message)
                return
            except Exception:  # the next one may succeed
                _log.exception("cannot send a heartbeat to the store")

    async def _close(self, uid: str) -> bool:
        """Close a silent trajectory. Return False if it has ended, was called meanwhile, or cannot be closed now."""
        trajectories = self._trajectories
        try:
            async with trajectories.locks.get(uid):
                active = trajectories.in_memory.get(uid)
                if active is not None and (active.in_flight or clock.monotonic() - active.touched <= self._expiry_s):
                    return False
                if active is None:
                    active = await trajectories.restore(uid)
            if active is None:
                return False
            cause = "silent" if active.recorder.finished() else "never_called"
            error = f"silent for more than {self._expiry_s:g} s"
            await trajectories.close(active, Status.TIMED_OUT, error=error, cause=cause)
        except ApiError:
            trajectories.evicted.pop(uid, None)
            return False
        except MidstreamError as error:
            _log.warning("cannot close trajectory %s, which was silent for too long: %s", uid, error)
            return False
        return True

    def _adopt(self, uids: Collection[str]) -> None:
        # After a long pause a gateway adopts its own trajectories again.
        others = [uid for uid in uids if uid not in self._trajectories.in_memory]
        self.adopted += len(others)
        for uid in others:
            self._trajectories.evicted[uid] = clock.monotonic()
