"""Collects the changes of a run into transactions: every change is an event, and its row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from midstream.core import clock
from midstream.plans.graph import Graph
from midstream.plans.journal import Event, Journal, Write
from midstream.plans.payloads import Payloads, Stored
from midstream.plans.redaction import Redact, redacted, redacted_json
from midstream.plans.rows import RunRow, StepRow, changed
from midstream.plans.states import ENDED, RunStatus, check_run
from midstream.store import Lease


class Ledger:
    """Changes of one run that were not written yet. `broke` is called when a transaction fails."""

    def __init__(
        self,
        journal: Journal,
        payloads: Payloads,
        row: RunRow,
        graph: Graph,
        steps: dict[str, list[StepRow]],
        lease: Lease,
        broke: Callable[[BaseException], None],
        redact: Redact | None = None,
    ) -> None:
        self.row, self.lease = row, lease
        self.steps = {path: {(step.scope, step.key): step for step in rows} for path, rows in steps.items()}
        self._journal, self._payloads, self._graph, self._broke = journal, payloads, graph, broke
        self._redact = redact
        self._last: asyncio.Future[None] | None = None
        self._clear()

    def _clear(self) -> None:
        self._step_rows: dict[tuple[str, str, str], StepRow] = {}
        self._blobs: dict[str, bytes] = {}
        self._consumed: list[int] = []
        self._graph.events, self._graph.touched = [], {}

    def change_run(self, status: RunStatus | None = None, **values: Any) -> None:
        """Change fields of the run; its status only along a legal transition."""
        if status is not None and status is not self.row.status:
            check_run(self.row.uid, self.row.status, status)
            values["status"] = status
            values["ended_at"] = clock.time() if status in ENDED else None
        for name, value in values.items():
            setattr(self.row, name, value)
        self._graph.events.append(("run", "", values))

    def change_step(self, row: StepRow, **values: Any) -> None:
        """Change a step, question or timer, or add it."""
        known = self.steps.setdefault(row.path, {})
        new = (row.scope, row.key) not in known
        for name, value in values.items():
            setattr(row, name, value)
        known[(row.scope, row.key)] = row
        place = {"scope": row.scope, "key": row.key}
        self._graph.events.append(("step", row.path, {**(changed(row) if new else values), **place}))
        self._step_rows[row.place] = row

    def note(self, kind: str, path: str, **data: Any) -> None:
        """Add an event that changes nothing."""
        self._graph.events.append((kind, path, data))

    def encode_result(self, value: Any, where: str) -> str:
        """`encode` for what a handler returned."""
        return self.encode(value if self._redact is None else redacted(value, self._redact), where)

    def encode_output(self, text: str) -> str:
        """`encode_text` for the output of a node or of the run."""
        return self.encode_text(text if self._redact is None else redacted_json(text, self._redact))

    def encode(self, value: Any, where: str) -> str:
        """Payload of `value`; its body is written with the next transaction."""
        return self._kept(self._payloads.encode(value, where))

    def encode_text(self, text: str) -> str:
        """`encode` for JSON text."""
        return self._kept(self._payloads.encoded(text))

    def _kept(self, stored: Stored) -> str:
        if stored.blob is not None:
            self._blobs[stored.text] = stored.blob
        return stored.text

    def consume(self, command: int) -> None:
        """A command of the inbox was carried out: it is deleted with the next transaction."""
        self._consumed.append(command)

    def commit(self) -> asyncio.Future[None] | None:
        """Submit all changes as one transaction; returns the newest transaction, or None before the first."""
        graph = self._graph
        if not (graph.events or self._consumed):
            return self._last
        now = clock.time()
        first = self.row.seq + 1
        self.row.seq += len(graph.events)
        events = [Event(first + at, now, *entry) for at, entry in enumerate(graph.events)]
        rows = Write(self.row, self.lease, events, graph.touched, self._step_rows, self._blobs, self._consumed)
        self._last = self._journal.write(rows)
        self._last.add_done_callback(self._written)
        self._clear()
        return self._last

    def _written(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._broke(error)
