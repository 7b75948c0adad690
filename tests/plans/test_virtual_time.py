"""Simulated work: time jumps when a run can only wait, and stands still while it chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plans.world import World, plan

from midstream.plans import Choice, SchedulerState, VirtualTime, handler


def work(name: str, hours: float, *after: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "handler": "work", "args": {"name": name, "hours": hours}, "after": after, **fields}


def simulate(tmp_path: Path, *nodes: dict[str, Any], **settings: Any) -> dict[str, tuple[float, float]]:
    """Start and end of each node."""
    time, spans = VirtualTime(), dict[str, tuple[float, float]]()

    @handler("work", effects="none")
    async def work(name: str, hours: float) -> None:
        start = time.now
        await time.sleep(hours)
        spans[name] = (start, time.now)

    World().run(tmp_path, plan(*nodes), work, on_wait=time.on_wait, **settings)
    return spans


def test_nodes_start_when_what_they_wait_for_has_ended(tmp_path: Path) -> None:
    nodes = (work("a", 3), work("b", 2), work("c", 4, "b"), work("d", 1, "a", "c"), work("e", 0, "d"))
    assert simulate(tmp_path, *nodes) == {"a": (0, 3), "b": (0, 2), "c": (2, 6), "d": (6, 7), "e": (7, 7)}


def test_what_ends_at_one_moment_ends_before_anything_starts(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[str]]] = []

    class Last:
        name = "last"

        async def choose(self, state: SchedulerState) -> Choice:
            seen.append(([one.path for one in state.ready], list(state.running)))
            return Choice(max(at for at, feasible in enumerate(state.feasible) if feasible), 0.0)

    nodes = (work("a", 2), work("b", 2), work("c", 5), work("d", 1, "b"))
    spans = simulate(tmp_path, *nodes, policy=Last(), max_concurrency=2)
    # c and b start; at 2 h b ends, and of a and d the last starts; a follows when that ends.
    assert spans == {"c": (0, 5), "b": (0, 2), "d": (2, 3), "a": (3, 5)}
    assert (["a", "d"], ["c"]) in seen


def test_several_places_become_free_together(tmp_path: Path) -> None:
    feasible: list[int] = []

    class First:
        name = "first"

        async def choose(self, state: SchedulerState) -> Choice:
            feasible.append(len(state.running))
            return Choice(state.feasible.index(True), 0.0)

    nodes = [work(name, 2) for name in "abcdef"]
    spans = simulate(tmp_path, *nodes, policy=First(), max_concurrency=3)
    assert [spans[name][0] for name in "abcdef"] == [0, 0, 0, 2, 2, 2]
    assert feasible == [0, 1, 2, 0, 1, 2]


def test_a_retry_is_work_too(tmp_path: Path) -> None:
    time, ends, tries = VirtualTime(), dict[str, float](), [1]

    @handler("work", effects="none")
    async def work_(name: str, hours: float) -> None:
        await time.sleep(hours)
        if name == "a" and tries:
            tries.pop()
            raise ConnectionError("not yet")
        ends[name] = time.now

    nodes = (work("a", 3, retry={"first_s": 0.0}), work("b", 2), work("c", 1, "a", "b"))
    World().run(tmp_path, plan(*nodes), work_, on_wait=time.on_wait)
    assert ends["b"] == 2 and ends["a"] == 6 and ends["c"] == 7
