"""Follows the publications of a run in another process: hands each new one to a subscriber."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from midstream.core import clock
from midstream.core.errors import RunError
from midstream.engines.publication import FOLDER, Publication, Subscriber, adapters, published

_log = logging.getLogger(__name__)
EVERY_S = 1.0


def check_followed(run: Path) -> None:
    """Raise `RunError` when `run` exists and is not a run directory. It may not exist yet."""
    if run.exists() and not (run / "config.yaml").is_file() and not (run.is_dir() and not any(run.iterdir())):
        raise RunError(f"'{run}' is no run directory", "name the trainer.run_dir of a training run")


async def follow(
    run: Path, subscriber: Subscriber, first: asyncio.Event, *, adapter: str | None = None, every_s: float = EVERY_S
) -> None:
    """Give `subscriber` the newest publication of `run` and every later one, until cancelled. `adapter` names what is
    followed; None follows whichever name has publications, and the first of several, with a warning.

    A publication that fails to load is logged and retried until a newer one appears; the policy does not change
    meanwhile. `first` is set after the first attempt to load, or at once when nothing is published yet.
    """
    root, reported, several = run / FOLDER, False, False
    loaded: Publication | None = None
    failed: Publication | None = None
    while True:
        newest = await asyncio.to_thread(_newest, root, adapter)
        if adapter is None and newest is not None and not several and len(names := adapters(root)) > 1:
            several = True
            _log.warning("'%s' publishes %s: following '%s'; name another", run, ", ".join(names), newest.adapter)
        if newest is None and not reported:
            reported = True
            _log.warning("'%s' has published no weights yet: the base model answers until it does", run)
        if newest is not None and newest != loaded:
            try:
                await subscriber.load_weights(newest)
                loaded = newest
                _log.info("policy version %d, from %s", newest.version, newest.folder)
            except Exception as error:  # later publications must still be loaded
                if newest != failed:
                    _log.warning("%s was not loaded: %s: %s", newest.folder, type(error).__name__, error)
                failed = newest
        first.set()
        await clock.sleep(every_s)


def _newest(root: Path, adapter: str | None) -> Publication | None:
    names = adapters(root) if adapter is None else [adapter]
    found = published(root, names[0]) if names else []
    return found[-1] if found else None
