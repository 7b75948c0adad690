"""Whether a task set holds what a run asks of each split."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from midstream.core.errors import TaskError
from midstream.tasks import TaskSet
from midstream.tasks.taskset import empty_split, shortage

_log = logging.getLogger(__name__)
_WITHOUT = {"val": "trainer.eval_every=0", "test": "trainer.test_tasks=0"}
"""The setting with which a run does without a split."""


def check_splits(tasks: TaskSet, needed: Mapping[str, int]) -> None:
    """Raise `TaskError` when a split that is needed is empty; log a line when one holds fewer tasks than needed."""
    for split, count in needed.items():
        if tasks.size(split) == 0:
            error = empty_split(tasks, split)
            without = f"; or set {_WITHOUT[split]}" if split in _WITHOUT else ""
            raise TaskError(error.message, f"{error.hint}{without}")
        if short := shortage(tasks, split, count):
            _log.warning("%s", short)
