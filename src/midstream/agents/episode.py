"""`Episode`: an environment whose actions survive the death of the process, as far as the environment allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from midstream.core.environments import Environment, Outcome, SnapshotEnvironment, resume_of
from midstream.core.errors import ConfigError
from midstream.core.types import Message
from midstream.record.action_log import ActionLog

_MISSING: Any = object()


class Episode:
    """One episode of `environment`. `actions` is the log of an attempt that can be resumed, and `interrupted` says
    whether an earlier process died during it.

    An environment that declares `replay` sees the recorded actions again. One that declares `snapshot` is restored
    before its first new action, and recorded outcomes are answered from the log. `none` starts the attempt again."""

    def __init__(self, environment: Environment, actions: ActionLog | None, interrupted: bool) -> None:
        self._environment = environment
        self._log = actions if resume_of(environment) == "snapshot" else None
        self._state: Any = _MISSING
        if interrupted and actions is not None and resume_of(environment) == "none":
            raise actions.start_again("its environment cannot be resumed")
        if self._log is not None and not isinstance(environment, SnapshotEnvironment):
            raise ConfigError(
                f"{type(environment).__name__} declares resume = 'snapshot' without the methods for it",
                "implement `snapshot` and `restore`, or declare 'replay' or 'none'",
            )

    async def reset(self) -> Sequence[Message]:
        """As `Environment.reset`."""
        if self._log is None:
            return await self._environment.reset()

        async def reset() -> dict[str, Any]:
            return {"messages": list(await self._environment.reset()), "state": await self._snapshot()}

        return self._kept(await self._log.run({"environment": "reset"}, reset, repeatable=True))["messages"]

    async def act(self, action: str) -> Outcome:
        """As `Environment.act`."""
        if self._log is None:
            return await self._environment.act(action)
        before = self._state

        async def act() -> dict[str, Any]:
            if before is not _MISSING:
                assert isinstance(self._environment, SnapshotEnvironment)
                await self._environment.restore(before)
            outcome = await self._environment.act(action)
            made = {"observation": outcome.observation, "reward": outcome.reward, "done": outcome.done}
            return {"outcome": {**made, "info": dict(outcome.info)}, "state": await self._snapshot()}

        self._state = _MISSING
        answered = self._log.answered
        result = await self._log.run({"environment": action}, act, repeatable=True)
        return Outcome(**(self._kept(result) if self._log.answered > answered else result)["outcome"])

    def _kept(self, result: dict[str, Any]) -> dict[str, Any]:
        self._state = result["state"]
        return result

    async def _snapshot(self) -> Any:
        assert isinstance(self._environment, SnapshotEnvironment)
        return await self._environment.snapshot()
