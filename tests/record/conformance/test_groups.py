"""Ready groups are leased once, to one owner, and hanging trajectories block no group."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time

import pytest
from tests.record.conformance.groups import TASK, begin, complete, counts, end, keys, lease
from tests.waiting import MovedClock

from midstream.core.errors import LeaseLost
from midstream.core.types import Status, Trajectory
from midstream.record import group_states, schema
from midstream.record.store import Store
from midstream.store import schema as store_schema


def test_a_group_is_ready_when_enough_trajectories_ended_with_any_status(store: Store) -> None:
    for member in range(3):
        begin(store, f"p-{member}", group_size=2)
    end(store, "p-1", Status.FAILED)
    assert lease(store) == [] and counts(store) == {"waiting": 1}
    end(store, "p-0")
    [leased] = store.groups.lease("run", 5, "train", 60)
    assert (leased.prompt_uid, leased.channel) == ("p", "train")
    assert [(t.uid, t.status) for t in leased.trajectories] == [("p-0", "completed"), ("p-1", "failed")]
    assert all(len(t.steps) == 1 for t in leased.trajectories)
    assert lease(store, "other") == []


def test_groups_are_leased_in_the_order_they_became_ready(store: Store) -> None:
    for prompt in ("slow", "a", "b", "c"):
        begin(store, f"{prompt}-0", group_size=1)
    for prompt in ("c", "a", "b"):
        end(store, f"{prompt}-0")
    assert lease(store, count=2) == ["c", "a"]
    assert lease(store, count=2) == ["b"]
    assert counts(store) == {"waiting": 1, "leased": 3}


def test_at_the_deadline_running_trajectories_time_out_and_stay_in_the_group(store: Store, clock: MovedClock) -> None:
    for member in range(3):
        begin(store, f"p-{member}", group_size=3, deadline=clock.time() + 10)
    end(store, "p-0")
    assert counts(store) == {"waiting": 1}
    clock.advance(12)
    assert counts(store) == {"ready": 1}
    assert store.groups.counts()["oldest_ready_s"] == 2
    [leased] = store.groups.lease("run", 1, "train", 60)
    assert [t.status for t in leased.trajectories] == ["completed", "timed_out", "timed_out"]
    assert leased.trajectories[1].error == "still running at the deadline of its group, 2.0 s ago"
    end_too_late = Trajectory(uid="p-1", prompt_uid="p", task=TASK)
    with pytest.raises(Exception, match="has already ended: timed_out"):
        asyncio.run(store.trajectories.finish(end_too_late))


def test_groups_made_ready_by_a_deadline_keep_their_order(store: Store, clock: MovedClock) -> None:
    begin(store, "due-0", group_size=2, deadline=clock.time() + 10)
    begin(store, "due-1")
    end(store, "due-0")
    clock.advance(12)
    complete(store, "after")
    clock.advance(1)
    assert lease(store) == ["due", "after"]


def test_a_group_without_ends_at_its_deadline_is_ready_with_the_first_end(store: Store) -> None:
    begin(store, "p-0", deadline=time.time() - 1)
    begin(store, "p-1")
    assert lease(store) == [] and counts(store) == {"waiting": 1}
    end(store, "p-1")
    assert counts(store) == {"ready": 1}
    assert lease(store) == ["p"]
    assert store.trajectories.get("p-0").status is Status.TIMED_OUT


def test_without_size_or_deadline_there_is_no_group(store: Store) -> None:
    begin(store, "p-0")
    end(store, "p-0")
    assert counts(store) == {} and lease(store) == []


def test_the_first_given_group_size_applies_to_earlier_members(store: Store) -> None:
    begin(store, "p-0")
    begin(store, "p-1", group_size=2)
    begin(store, "p-2", group_size=99)
    end(store, "p-0")
    end(store, "p-2")
    assert lease(store) == ["p"]


def test_groups_of_different_channels_are_different(store: Store) -> None:
    store.trajectories.begin("a", "p", TASK, "train", group_size=1)
    store.trajectories.begin("b", "p", TASK, "online", group_size=1)
    asyncio.run(store.trajectories.finish(Trajectory(uid="b", prompt_uid="p", task=TASK)))
    assert lease(store) == []
    [leased] = store.groups.lease("run", 5, "online", 60)
    assert [t.uid for t in leased.trajectories] == ["b"]
    assert store.groups.counts()["waiting"] == 1 and store.groups.counts("online")["leased"] == 1


def test_an_expired_lease_is_leased_again_and_its_old_owner_cannot_consume(store: Store) -> None:
    complete(store, "p")
    assert lease(store, "gone", lease_s=-1) == ["p"]
    assert counts(store) == {"ready": 1} and store.groups.oldest_ready_version("train") == 0
    assert lease(store, "new") == ["p"]
    with pytest.raises(LeaseLost, match="'gone' no longer holds 1 of 1 groups, such as 'p' of the channel 'train'"):
        store.groups.consume("gone", keys("p"), 1)
    store.groups.consume("new", keys("p"), 1)


def test_a_renewed_lease_stays_valid(store: Store) -> None:
    complete(store, "p")
    lease(store, "run", lease_s=-1)
    assert store.groups.renew("run", 60) == 1 and store.groups.renew("other", 60) == 0
    assert lease(store, "other") == []


def test_consumed_is_final_and_all_or_nothing(store: Store) -> None:
    for prompt in ("a", "b", "c"):
        complete(store, prompt)
    lease(store, "run", count=2)
    with pytest.raises(LeaseLost, match="1 of 2 groups, such as 'c'"):
        store.groups.consume("run", keys("a", "c"), 3)
    assert counts(store) == {"leased": 2, "ready": 1}
    store.groups.consume("run", keys("a"), 3)
    store.groups.consume("run", keys("a"), 3)  # the response to the first call may have been lost
    with pytest.raises(LeaseLost):
        store.groups.consume("run", keys("a"), 4)
    assert counts(store) == {"consumed": 1, "leased": 1, "ready": 1}
    assert store.groups.release("run", keys("a", "b")) == 1
    assert lease(store, "other") == ["b", "c"]


def test_consuming_and_releasing_a_group_leave_the_group_of_another_channel_alone(store: Store) -> None:
    for channel in ("train", "online"):
        complete(store, "p", channel=channel)
        assert lease(store, "run", channel=channel) == ["p"]
    with pytest.raises(LeaseLost, match="'p' of the channel 'val'"):
        store.groups.consume("run", keys("p", channel="val"), 1)
    store.groups.consume("run", keys("p"), 1)
    assert (counts(store, "train"), counts(store, "online")) == ({"consumed": 1}, {"leased": 1})
    assert store.groups.release("run", keys("p")) == 0
    assert store.groups.release("run", keys("p", channel="online")) == 1
    assert counts(store, "online") == {"ready": 1}


def test_more_groups_than_a_statement_takes_are_leased_and_consumed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_schema, "MOST_VALUES", 2)
    for number in range(7):
        complete(store, f"p{number}")
    groups = store.groups.lease("run", 7, "train", 60)
    assert [group.prompt_uid for group in groups] == [f"p{number}" for number in range(7)]
    assert all(len(group.trajectories[0].steps) == 1 for group in groups)
    store.groups.consume("run", [group.key for group in groups], 1)
    assert counts(store) == {"consumed": 7}


def test_a_resumed_run_gets_the_groups_after_its_checkpoint_again(store: Store) -> None:
    for prompt in ("a", "b", "c", "d"):
        complete(store, prompt)
    for step, prompt in enumerate(("a", "b", "c")):
        assert lease(store, count=1) == [prompt]
        store.groups.consume("run", keys(prompt), step)
    lease(store, count=1)
    assert store.groups.reopen("other", 0) == 0
    assert store.groups.reopen("run", 0) == 3
    assert lease(store, "anybody") == ["b", "c", "d"]
    assert counts(store) == {"consumed": 1, "leased": 3}


def test_a_stale_group_is_never_leased(store: Store) -> None:
    complete(store, "old", version=1)
    complete(store, "new", version=3)
    begin(store, "mixed-0", group_size=2)
    begin(store, "mixed-1", group_size=2)
    end(store, "mixed-0", version=1)
    end(store, "mixed-1", version=2)
    begin(store, "silent-0", group_size=1)
    asyncio.run(
        store.trajectories.finish(Trajectory(uid="silent-0", prompt_uid="silent", task=TASK, status=Status.FAILED))
    )
    assert lease(store, count=3, min_version=2) == ["new", "mixed", "silent"]
    assert counts(store) == {"stale": 1, "leased": 3}
    assert lease(store) == []


def test_a_restarted_trajectory_rejoins_its_group(store: Store) -> None:
    complete(store, "p")
    begin(store, "p-0")
    assert counts(store) == {"waiting": 1}
    end(store, "p-0")
    assert counts(store) == {"ready": 1}


def test_a_trajectory_restarted_in_another_group_leaves_the_first(store: Store) -> None:
    begin(store, "p-0", group_size=1)
    end(store, "p-0")
    store.trajectories.begin("p-0", "p", TASK, "val")
    assert counts(store) == {}


def test_deleting_the_last_trajectory_deletes_its_group(store: Store) -> None:
    store.trajectories.begin("p-0", "p", TASK, "train", train_step=1, group_size=1)
    store.trajectories.begin("q-0", "q", TASK, "train", train_step=2, group_size=1)
    store.trajectories.discard_from(2)
    assert counts(store) == {"waiting": 1}


def test_any_number_of_groups_can_change_at_once(store: Store) -> None:
    complete(store, "p1", size=1)
    store.database.write(
        lambda transaction: transaction.connection.execute(schema.groups.update().values(state="waiting"))
    )
    keys = {(f"p{number}", "train") for number in range(130_000)}  # more than either database accepts as parameters
    store.database.write(lambda transaction: group_states.update_states(transaction.connection, keys, time.time()))
    assert counts(store) == {"ready": 1}


WORKER = textwrap.dedent(
    """
    import asyncio, sys, time
    from midstream.core.types import Task, Trajectory
    from midstream.record.store import Store

    database, name = sys.argv[1:]
    with Store(database, durability="normal") as store:
        print("ready", flush=True)
        sys.stdin.readline()
        async def finish_all():
            # The trajectories of a group end in two processes.
            await asyncio.gather(*(store.trajectories.finish(Trajectory(uid=f"p{n}-{name}", prompt_uid=f"p{n}",
                                                           task=Task(id="t", prompt="q"))) for n in range(40)))
        asyncio.run(finish_all())
        until = time.monotonic() + 30
        while store.groups.counts()["waiting"] and time.monotonic() < until:
            time.sleep(0.01)
        while (taken := store.groups.lease(name, 3, "train", 60)) or store.groups.counts()["ready"]:
            print(*(leased.prompt_uid for leased in taken), flush=True)
    """
)


def test_two_processes_lease_every_group_exactly_once(database: str) -> None:
    with Store(database) as store:
        for number in range(40):
            begin(store, f"p{number}-a", group_size=2)
            begin(store, f"p{number}-b", group_size=2)
        store.flush()
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, database, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "ab"
        ]
        for worker in workers:
            assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        taken = [worker.communicate(timeout=60)[0].split() for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0]
        assert sorted(taken[0] + taken[1]) == sorted(f"p{number}" for number in range(40))
        assert counts(store) == {"leased": 40}
