"""Pruning deletes old, finished trajectories and nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from midstream.core.types import Step, Task, Trajectory
from midstream.record import schema
from midstream.record.store import PRUNED_AT_ONCE, Store

TASK = Task(id="t", prompt="q")


def recorded(store: Store, uid: str, prompt_uid: str = "p", channel: str = "train", size: int | None = None) -> None:
    store.trajectories.begin(uid, prompt_uid, TASK, channel, group_size=size)
    step = Step(prompt_ids=(1,), response_ids=(2,), trajectory_uid=uid, prompt_uid=prompt_uid, text="x" * 2000)
    asyncio.run(store.trajectories.finish(Trajectory(uid=uid, prompt_uid=prompt_uid, task=TASK, steps=(step,))))


def uids(store: Store) -> list[str]:
    return [trajectory.uid for trajectory in store.trajectories.iterate()]


def rows(store: Store) -> dict[str, int]:
    tables = (schema.steps, schema.curation, schema.tags, schema.feedback, schema.groups)
    return store.database.read(lambda c: {table.name: len(c.execute(table.select()).all()) for table in tables})


def test_pruning_deletes_old_trajectories_with_all_their_data(store: Store) -> None:
    recorded(store, "a")
    store.annotations.curate("a", tags=["x"])
    store.annotations.add_feedback("a", "thumbs", 1)
    store.trajectories.begin("running", "q", TASK, "train")
    assert store.prune(3600) == 0
    assert store.prune(-1) == 1
    assert uids(store) == ["running"]
    assert rows(store) == {"steps": 0, "curation": 0, "tags": 0, "feedback": 0, "groups": 0}


def test_only_the_given_channel_is_pruned(store: Store) -> None:
    recorded(store, "a", channel="online")
    recorded(store, "b")
    assert store.prune(-1, "online") == 1
    assert uids(store) == ["b"]


def test_pruning_keeps_waiting_ready_and_leased_groups(store: Store) -> None:
    for prompt in ("consumed", "leased", "ready"):
        recorded(store, prompt, prompt, size=1)
    recorded(store, "waiting", "waiting", size=2)
    store.groups.lease("run", 2, "train", 60)
    store.groups.consume("run", [("consumed", "train")], 1)
    assert store.prune(-1) == 1
    assert uids(store) == ["leased", "ready", "waiting"]
    assert store.groups.counts()["consumed"] == 0
    assert store.prune(-1, keep=()) == 2
    assert uids(store) == ["leased"]
    assert store.groups.counts()["leased"] == 1 and rows(store)["groups"] == 1


def test_pruning_spans_several_transactions(store: Store) -> None:
    store.trajectories.begin("u0", "p", TASK, "train")
    store.flush()
    [row] = store.database.read(lambda c: [dict(one) for one in c.execute(schema.trajectories.select()).mappings()])
    total = PRUNED_AT_ONCE + 7
    many = [{**row, "id": n + 9, "uid": f"v{n}", "status": "completed", "ended_at": 1.0} for n in range(total)]
    store.database.write(lambda transaction: transaction.connection.execute(schema.trajectories.insert(), many))
    assert store.prune(3600) == total
    assert uids(store) == ["u0"]


def test_vacuum_frees_space_and_recording_continues(database: str) -> None:
    with Store(database, durability="normal") as store:
        for number in range(200):
            recorded(store, f"u{number}", f"p{number}")
        recorded(store, "kept", "kept", size=2)
        store.prune(-1)
        before = _size(database)
        store.prune(-1, vacuum=True)
        assert _size(database) < before / 2
        recorded(store, "after")
        assert uids(store) == ["kept", "after"]


def _size(database: str) -> int:
    """Bytes on disk."""
    if not database.startswith("postgresql"):
        return sum(path.stat().st_size for path in Path(database).parent.glob("store.db*"))
    import psycopg

    with psycopg.connect(database) as connection:
        found = connection.execute("SELECT pg_total_relation_size('steps')").fetchone()
        assert found is not None
        return int(found[0])
