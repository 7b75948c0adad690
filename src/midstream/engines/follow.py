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
    """Give `subscriber` the newest publication of each adapter of `run` and every later one, until cancelled. `adapter`
    names the only one that is followed.

    A publication that fails to load is logged and retried until a newer one appears; the policy does not change
    meanwhile. `first` is set after the first attempt to load, or at once when nothing is published yet.
    """
    root, reported = run / FOLDER, False
    loaded: dict[str, Publication] = {}
    failed: dict[str, Publication] = {}
    while True:
        newest = await asyncio.to_thread(_newest, root, adapter)
        if not newest and not reported:
            reported = True
            _log.warning("'%s' has published no weights yet: the base model answers until it does", run)
        for one in newest:
            if one == loaded.get(one.adapter):
                continue
            try:
                await subscriber.load_weights(one)
                loaded[one.adapter] = one
                _log.info("policy version %d, from %s", one.version, one.folder)
            except Exception as error:  # later publications must still be loaded
                if one != failed.get(one.adapter):
                    _log.warning("%s was not loaded: %s: %s", one.folder, type(error).__name__, error)
                failed[one.adapter] = one
        first.set()
        await clock.sleep(every_s)


def _newest(root: Path, adapter: str | None) -> list[Publication]:
    names = adapters(root) if adapter is None else [adapter]
    return [found[-1] for name in names if (found := published(root, name))]
