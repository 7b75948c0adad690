"""Fewer runs of Python's cyclic garbage collector while many attempts or calls are in progress."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_PER_COLLECTION = 10_000
"""Container objects made between two collections of the youngest; Python's default is 700."""

_lock = threading.Lock()
_inside = 0
_threshold = gc.get_threshold()


@contextmanager
def rare_collections() -> Iterator[None]:
    """In this block, collections skip the objects that existed before it, and happen after more new objects.

    A thousand attempts in progress are many objects that cannot be freed yet; searching them again and again took a
    third of the time of rollouts with fast models (benchmarks/tools/trajectories.py). The collector belongs to the
    process, so blocks may overlap: the last one to end restores its settings. A threshold that is already higher, or 0
    (off), is kept.
    """
    global _inside, _threshold
    with _lock:
        _inside += 1
        if _inside == 1:
            gc.freeze()
            _threshold = gc.get_threshold()
            if 0 < _threshold[0] < OBJECTS_PER_COLLECTION:
                gc.set_threshold(OBJECTS_PER_COLLECTION, *_threshold[1:])
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                gc.set_threshold(*_threshold)
                gc.unfreeze()
