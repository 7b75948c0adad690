"""Following a run: an engine elsewhere takes each new checkpoint as its policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.learn.checkpoint import checkpoints, read_state

_log = logging.getLogger(__name__)
EVERY_S = 1.0

WeightLoader = Callable[[Path, int], Awaitable[None]]
"""Takes the weights of a checkpoint folder as those of a policy version."""


def check_followed(run: Path) -> None:
    """Raises `RunError` when `run` is there and is no run directory. It may not be there yet."""
    if run.exists() and not (run / "config.yaml").is_file() and not (run.is_dir() and not any(run.iterdir())):
        raise RunError(f"'{run}' is no run directory", "name the trainer.run_dir of a training run")


async def follow(run: Path, take: WeightLoader, first: asyncio.Event, *, every_s: float = EVERY_S) -> None:
    """Have `take` load the newest checkpoint of `run`, and each that comes after, for as long as this runs. One that
    cannot be taken is logged and tried again until there is a newer one; the policy stays as it was. `first` is set
    when the newest checkpoint there was at the beginning, if any, has been tried."""
    if not (run / "checkpoints").is_dir():
        _log.warning("there is no checkpoint in '%s' yet: the base model answers until there is one", run)
    taken: Path | None = None
    failed: Path | None = None
    while True:
        found = await asyncio.to_thread(checkpoints, run)
        if found and found[-1] != taken:
            newest = found[-1]
            try:
                version = read_state(newest).policy_version
                await take(newest, version)
                taken = newest
                _log.info("policy version %d, from %s", version, newest)
            except Exception as error:  # whatever it was, later checkpoints must be taken all the same
                if newest != failed:
                    _log.warning("%s was not taken: %s: %s", newest, type(error).__name__, error)
                failed = newest
        first.set()
        await clock.sleep(every_s)
