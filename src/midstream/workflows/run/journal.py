"""Journals let a long run survive a crash: nodes that finished are not run again.

The runner asks a journal before each node and tells it the node's record after. Any durable store can implement
`Journal`; `FileJournal` keeps one run in a file of JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from midstream.workflows.run.trace import NodeRun, node_from_json


class Journal(Protocol):
    """Records of finished nodes by key. A key names one execution of one node with one input."""

    async def get(self, key: str) -> NodeRun | None: ...

    async def put(self, key: str, node: NodeRun) -> None:
        """Keep a record; returns when it is durable."""
        ...


def journal_key(node: str, operator: str, arguments: Mapping[str, Any]) -> str:
    """The key of one execution: the node with its rounds, its operator, and a digest of its arguments."""
    text = json.dumps(arguments, sort_keys=True, default=str)
    return f"{node} {operator} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


class FileJournal:
    """A journal in a file. Each record is on disk before the run goes on. A torn end of the file, from the first line
    on that is no record, is removed when the journal is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: dict[str, NodeRun] = {}
        if path.exists():
            whole = 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    entry = json.loads(line)
                    node = node_from_json(entry["node"])
                except (ValueError, KeyError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                self._nodes[entry["key"]] = node
                whole += len(line)
            if whole < path.stat().st_size:
                os.truncate(path, whole)

    async def get(self, key: str) -> NodeRun | None:
        return self._nodes.get(key)

    async def put(self, key: str, node: NodeRun) -> None:
        self._nodes[key] = node
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "node": asdict(node)}) + "\n")
            file.flush()
            os.fsync(file.fileno())
