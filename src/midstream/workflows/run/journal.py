"""A journal keeps the nodes of a run that are done, so that a run that goes on after a crash does not repeat them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from midstream.workflows.run.trace import NodeRun


class Journal(Protocol):
    """Executes each node once. `run.durable.StepJournal` is one, on the plan executor."""

    async def once(self, key: str, execute: Callable[[], Awaitable[NodeRun]]) -> NodeRun:
        """The record of the node `key`: the kept one, else that of `execute`, which is kept before this returns.

        A key names one execution of one node with one input. A node that raises is not kept."""
        ...


def journal_key(node: str, operator: str, arguments: Mapping[str, Any]) -> str:
    """The key of one execution: the node with its rounds, its operator, and a digest of its arguments."""
    text = json.dumps(arguments, sort_keys=True, default=str)
    return f"{node} {operator} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
