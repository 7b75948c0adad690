"""Follows a training run: loads each new checkpoint into an engine of another process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.learn.run.checkpoint import checkpoints, read_state

_log = logging.getLogger(__name__)
EVERY_S = 1.0

WeightLoader = Callable[[Path, int], Awaitable[None]]
"""Loads the weights of a checkpoint folder as a policy version."""


def check_followed(run: Path) -> None:
    """Raise `RunError` when `run` exists and is not a run directory. It may not exist yet."""
    if run.exists() and not (run / "config.yaml").is_file() and not (run.is_dir() and not any(run.iterdir())):
        raise RunError(f"'{run}' is no run directory", "name the trainer.run_dir of a training run")


async def follow(run: Path, load: WeightLoader, first: asyncio.Event, *, every_s: float = EVERY_S) -> None:
    """Load the newest checkpoint of `run` and every later one until cancelled.

    A checkpoint that fails to load is logged and retried until a newer one appears; the policy does not change
    meanwhile. `first` is set after the first attempt to load, or at once when there is no checkpoint yet.
    """
    if not (run / "checkpoints").is_dir():
        _log.warning("there is no checkpoint in '%s' yet: the base model answers until one appears", run)
    loaded: Path | None = None
    failed: Path | None = None
    while True:
        found = await asyncio.to_thread(checkpoints, run)
        if found and found[-1] != loaded:
            newest = found[-1]
            try:
                version = read_state(newest).policy_version
                await load(newest, version)
                loaded = newest
                _log.info("policy version %d, from %s", version, newest)
            except Exception as error:  # later checkpoints must still be loaded
                if newest != failed:
                    _log.warning("%s was not loaded: %s: %s", newest, type(error).__name__, error)
                failed = newest
        first.set()
        await clock.sleep(every_s)
