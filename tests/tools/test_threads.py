"""Threads of synchronous tools: reused, never shared, and gone when nobody needs them."""

import threading
import time
from queue import SimpleQueue

from midstream.tools import threads
from midstream.tools.threads import ReusedThreads


def test_a_thread_is_reused_when_its_work_has_ended():
    pool, seen = ReusedThreads("reused"), SimpleQueue()
    for _ in range(5):
        pool.run(lambda: seen.put(threading.get_ident()))
        first = seen.get(timeout=10)
        while not pool._idle:
            time.sleep(0.001)
    assert first in {one.ident for one in threading.enumerate() if one.name == "reused"}
    assert sum(one.name == "reused" for one in threading.enumerate()) == 1


def test_work_that_hangs_holds_nobody_else():
    pool, seen, release = ReusedThreads("hung"), SimpleQueue(), threading.Event()
    for _ in range(50):
        pool.run(lambda: release.wait(30))
    pool.run(lambda: seen.put("done"))
    assert seen.get(timeout=10) == "done"
    release.set()


def test_idle_threads_end_and_later_work_runs_all_the_same(monkeypatch):
    monkeypatch.setattr(threads, "IDLE_S", 0.01)
    pool, seen = ReusedThreads("idle"), SimpleQueue()
    for number in range(30):
        pool.run(lambda number=number: seen.put(number))
        assert seen.get(timeout=10) == number
    for one in [one for one in threading.enumerate() if one.name == "idle"]:
        one.join(10)
        assert not one.is_alive()
