"""Daemon threads for synchronous tools: started on demand, and reused after a call has ended.

Their number is not limited: in a pool of fixed size a few hung tools would block all other trajectories. A hung tool
keeps its thread, but a daemon thread does not keep the process from exiting. Starting a thread takes about as long as
the rest of a tool call, so idle threads wait `IDLE_S` seconds for another call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_S = 10.0

Work = Callable[[], object]


class ReusedThreads:
    """Runs each piece of work in a separate thread. Work must not raise."""

    def __init__(self, name: str) -> None:
        self._name = name
        # The inbox of each idle thread. Appending, popping and removing are atomic.
        self._idle: list[SimpleQueue[Work]] = []

    def run(self, work: Work) -> None:
        """Run `work` soon, in the thread that became idle last, or in a new one."""
        try:
            inbox = self._idle.pop()
        except IndexError:
            threading.Thread(target=self._serve, args=(work,), name=self._name, daemon=True).start()
        else:
            inbox.put(work)

    def _serve(self, work: Work | None) -> None:
        inbox: SimpleQueue[Work] = SimpleQueue()
        while work is not None:
            work()
            work = None  # what it refers to must not outlive it
            self._idle.append(inbox)
            try:
                work = inbox.get(timeout=IDLE_S)
            except Empty:
                work = self._retire(inbox)

    def _retire(self, inbox: SimpleQueue[Work]) -> Work | None:
        """Stop being idle; returns work that arrived in the meantime, if any."""
        try:
            self._idle.remove(inbox)
        except ValueError:
            return inbox.get()  # another thread has just taken the inbox to put work into it
        return None
