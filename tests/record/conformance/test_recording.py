"""The store returns exactly what was written, in order, and readers do not wait for writers."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.record.conformance.steps import TASK, a_step

from midstream.core.errors import RunError
from midstream.core.types import Status, Trajectory
from midstream.record.store import Store
from midstream.record.trajectories import PAGE


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_recorded_trajectories_are_read_back_exactly(
    store: Store, data: st.DataObject, whole_trajectories: st.SearchStrategy[Trajectory]
) -> None:
    trajectory = data.draw(whole_trajectories)
    store.trajectories.begin(trajectory.uid, trajectory.prompt_uid, trajectory.task, "train")
    for step in trajectory.steps:
        store.trajectories.append_sync(replace(step, reward=None))
    asyncio.run(store.trajectories.finish(trajectory))
    assert store.trajectories.get(trajectory.uid) == trajectory
    assert repr(store.trajectories.get(trajectory.uid)) == repr(
        trajectory
    )  # distinguishes 1 from 1.0 and True, and a tuple from a list


def test_a_running_trajectory_can_be_read_with_its_steps(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "val", train_step=4)
    store.trajectories.append_sync(a_step("u", 1))
    store.trajectories.append_sync(a_step("u", 0))
    read = store.trajectories.get("u")
    assert (read.task, read.status, read.reward) == (TASK, Status.RUNNING, None)
    assert read.steps == (a_step("u", 0), a_step("u", 1))
    assert store.trajectories.count(channel="val", train_step=4, status=Status.RUNNING) == 1


def test_the_same_step_again_replaces_it_and_an_update_changes_it(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "train")
    store.trajectories.append_sync(a_step("u"))
    store.trajectories.append_sync(a_step("u", text="again"))
    assert store.trajectories.get("u").steps == (a_step("u", text="again"),)
    changed = a_step("u", text="again", reward=0.5, is_last=True, metadata={"note": ["x"]})
    asyncio.run(store.trajectories.update_step(changed))
    assert store.trajectories.get("u").steps == (changed,)


def test_rerunning_a_uid_starts_empty(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "train", train_step=1)
    store.trajectories.append_sync(a_step("u", 0))
    store.trajectories.append_sync(a_step("u", 1))
    asyncio.run(
        store.trajectories.finish(
            replace(store.trajectories.get("u"), status=Status.FAILED, error="crashed", reward=1.0)
        )
    )
    store.trajectories.begin("u", "p", TASK, "train", train_step=1)
    store.trajectories.append_sync(a_step("u", 0))
    assert store.trajectories.get("u") == Trajectory(
        uid="u", prompt_uid="p", task=TASK, status=Status.RUNNING, steps=(a_step("u", 0),)
    )
    assert store.trajectories.count() == 1


def test_finish_keeps_the_training_step_and_recorded_steps(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "train", train_step=3)
    store.trajectories.append_sync(a_step("u"))
    asyncio.run(
        store.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=TASK, status=Status.FAILED, error="boom"))
    )
    read = store.trajectories.get("u")
    assert (read.status, read.error, read.steps) == (Status.FAILED, "boom", (a_step("u"),))
    assert store.trajectories.count(train_step=3) == 1


def test_a_step_of_an_unopened_trajectory_is_kept(store: Store) -> None:
    store.trajectories.append_sync(a_step("stray"), channel="online")
    assert store.trajectories.get("stray").steps == (a_step("stray"),)
    assert [t.uid for t in store.trajectories.iterate(channel="online", prompt_uid="p")] == ["stray"]


def test_trajectories_stream_in_order_and_by_filter(store: Store) -> None:
    total = PAGE * 2 + 5
    for number in range(total):
        store.trajectories.begin(
            f"u{number}", f"p{number // 4}", TASK, "train" if number % 2 else "val", train_step=number // 10
        )
    in_order = [f"u{number}" for number in range(total)]
    assert [t.uid for t in store.trajectories.iterate()] == in_order
    assert [t.uid for t in store.trajectories.iterate(newest_first=True, limit=PAGE + 3)] == in_order[::-1][: PAGE + 3]
    assert [t.uid for t in store.trajectories.iterate(channel="val", train_step=1)] == [
        "u10",
        "u12",
        "u14",
        "u16",
        "u18",
    ]
    assert list(store.trajectories.iterate(status=Status.COMPLETED)) == []
    assert list(store.trajectories.iterate(limit=0)) == []
    assert [t.uid for t in store.trajectories.iterate(channel="val", prompt_uid="p0")] == ["u0", "u2"]
    assert (store.trajectories.count(), store.trajectories.count(channel="train")) == (total, total // 2)


def test_discard_from_a_step_keeps_earlier_and_stepless_trajectories(store: Store) -> None:
    for step in (None, 0, 1, 2, 3):
        store.trajectories.begin(f"u{step}", "p", TASK, "train", train_step=step)
        store.trajectories.append_sync(a_step(f"u{step}"))
    store.trajectories.discard_from(2)
    assert [t.uid for t in store.trajectories.iterate()] == ["uNone", "u0", "u1"]
    assert all(len(t.steps) == 1 for t in store.trajectories.iterate())
    store.trajectories.begin("u3", "p", TASK, "train", train_step=3)
    assert store.trajectories.get("u3").steps == ()  # its steps went too


def test_discarding_can_spare_what_no_later_version_sampled(store: Store) -> None:
    for uid, version in (("old", 3), ("new", 4)):
        store.trajectories.begin(uid, "p", TASK, "train", train_step=5)
        store.trajectories.append_sync(replace(a_step(uid), policy_version=version))
    store.trajectories.begin("empty", "p", TASK, "train", train_step=5)
    store.trajectories.discard_from(5, newer_than=3)
    assert [t.uid for t in store.trajectories.iterate()] == ["old", "empty"]


def test_many_callers_share_few_transactions(database: str) -> None:
    async def caller(store: Store, uid: str) -> None:
        store.trajectories.begin(uid, "p", TASK, "train")
        for index in range(20):
            await store.trajectories.append(a_step(uid, index))

    async def everybody(store: Store) -> None:
        await asyncio.gather(*(caller(store, f"u{number}") for number in range(64)))

    with Store(database) as store:
        asyncio.run(everybody(store))
        assert sum(len(t.steps) for t in store.trajectories.iterate()) == 64 * 20
        assert store.database.commits < 64 * 20 / 16


def test_reading_continues_during_writes(store: Store) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            uid = f"u{number}"
            store.trajectories.begin(uid, "p", TASK, "train")
            store.trajectories.append_sync(a_step(uid))
            asyncio.run(
                store.trajectories.finish(
                    Trajectory(uid=uid, prompt_uid="p", task=TASK, steps=(a_step(uid),), reward=1.0)
                )
            )
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        while seen < 150:
            read = list(store.trajectories.iterate(status=Status.COMPLETED))
            assert len(read) >= seen and all(t.steps == (a_step(t.uid),) and t.reward == 1.0 for t in read)
            seen = len(read)
    finally:
        stop.set()
        writer.join()


def test_a_second_store_sees_acknowledged_writes(database: str) -> None:
    with Store(database) as writer, Store(database) as reader:
        writer.trajectories.append_sync(a_step("u"))
        assert reader.trajectories.get("u").steps == (a_step("u"),)


def test_a_cancelled_append_is_stored_and_affects_no_other(store: Store) -> None:
    async def cancel_one() -> None:
        appends = [asyncio.ensure_future(store.trajectories.append(a_step("u", index))) for index in range(8)]
        await asyncio.sleep(0)
        appends[3].cancel()
        results = await asyncio.gather(*appends, return_exceptions=True)
        assert [
            result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)
        ] == []

    asyncio.run(cancel_one())
    assert len(store.trajectories.get("u").steps) == 8


def test_values_that_json_cannot_represent_are_refused(store: Store) -> None:
    with pytest.raises(RunError, match="metadata of step 0 of trajectory 'u': it holds a object"):
        store.trajectories.append_sync(a_step("u", metadata={"handle": object()}))
    with pytest.raises(RunError, match=r"task of trajectory 'v'.*\n.*lists"):
        store.trajectories.begin("v", "p", replace(TASK, metadata={"set": {1}}), "train")
    assert store.trajectories.count() == 0


def test_a_row_refused_by_the_database_fails_only_its_caller(store: Store) -> None:
    async def together() -> list[BaseException | None]:
        appends = [
            store.trajectories.append(a_step("fine")),
            store.trajectories.append(a_step("\ud800")),
            store.trajectories.append(a_step("fine", 1)),
        ]
        return await asyncio.gather(*appends, return_exceptions=True)

    first, second, third = asyncio.run(together())
    assert first is None and third is None and isinstance(second, UnicodeEncodeError)
    assert len(store.trajectories.get("fine").steps) == 2


def test_cancelled_callers_do_not_affect_others(database: str) -> None:
    async def hand_in(store: Store) -> None:
        waiting = [asyncio.ensure_future(store.trajectories.append(a_step("given up", index))) for index in range(20)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)

    with Store(database) as store:
        asyncio.run(hand_in(store))  # its loop is closed before everything is on disk
        store.trajectories.append_sync(a_step("u"))
        assert len(store.trajectories.get("given up").steps) == 20


def test_a_failed_unawaited_write_is_reported_later(store: Store) -> None:
    store.trajectories.begin("\ud800", "p", TASK, "train")
    with pytest.raises(UnicodeEncodeError):
        store.flush()
    store.trajectories.append_sync(a_step("u"))
    assert store.trajectories.count() == 1


def test_close_writes_pending_rows(database: str) -> None:
    store = Store(database)
    for number in range(50):
        store.trajectories.begin(f"u{number}", "p", TASK, "train")
    store.close()
    with Store(database) as again:
        assert again.trajectories.count() == 50


def test_json_that_resembles_our_markers_is_read_back_unchanged(store: Store) -> None:
    odd = {"!tuple": [1], "a": {"!dict": [[1, 2]]}, "b": [{"!float": "inf"}], "c": {"!tuple": (math.inf, "\ud800")}}
    step = a_step("u", metadata=odd, messages=({"role": "user", "content": "x", "extra": {"!tuple": []}},))
    store.trajectories.append_sync(step)
    assert repr(store.trajectories.get("u").steps[0]) == repr(step)


def test_infinities_and_signed_zeros_are_kept(store: Store) -> None:
    step = a_step("u", rollout_log_probs=(-math.inf, -0.0), reward=math.inf, metadata={"x": -math.inf})
    store.trajectories.append_sync(step)
    read = store.trajectories.get("u").steps[0]
    assert read == step and repr(read) == repr(step)


def test_acknowledge_returns_after_all_rows_are_on_disk(database: str) -> None:
    async def begin_and_wait(store: Store) -> None:
        for number in range(5):
            store.trajectories.begin(f"u{number}", "p", TASK, "train")
        await store.acknowledge()

    with Store(database) as store, Store(database) as reader:
        asyncio.run(begin_and_wait(store))
        assert reader.trajectories.count() == 5
        store.trajectories.begin("\ud800", "p", TASK, "train")
        with pytest.raises(UnicodeEncodeError):
            asyncio.run(store.acknowledge())
        asyncio.run(store.acknowledge())


def test_a_trajectory_stays_in_its_first_channel(store: Store) -> None:
    store.trajectories.begin("u", "p", TASK, "online")
    asyncio.run(store.trajectories.finish(Trajectory(uid="u", prompt_uid="p", task=TASK), channel="train"))
    assert [t.uid for t in store.trajectories.iterate(channel="online", prompt_uid="p")] == ["u"]


def test_open_trajectories_are_restored_with_their_session_and_steps(database: str) -> None:
    with Store(database) as store:
        store.trajectories.begin("kept", "p", TASK, "online", session={"token": "hash", "scopes": ("a",)})
        store.trajectories.begin("changed", "p", TASK, "online", session={"token": "old"})
        store.trajectories.begin("ended", "p", TASK, "online", session={"token": "x"})
        store.trajectories.begin("without", "p", TASK, "online")
        store.trajectories.append_sync(a_step("kept"))
        asyncio.run(store.trajectories.amend("changed", task=TASK, session={"token": "new"}))
        asyncio.run(store.trajectories.finish(Trajectory(uid="ended", prompt_uid="p", task=TASK)))
    with Store(database) as again:
        assert sorted(again.trajectories.open_uids()) == ["changed", "kept"]
        kept, changed = again.trajectories.find("kept"), again.trajectories.find("changed")
        assert kept is not None and kept.session == {"token": "hash", "scopes": ("a",)}
        assert kept.channel == "online" and kept.trajectory.steps == (a_step("kept"),)
        assert changed is not None and changed.session == {"token": "new"}


def test_listing_filters_by_recorded_fields(store: Store) -> None:
    for number in range(6):
        uid = f"u{number}"
        store.trajectories.begin(uid, f"p{number // 2}", TASK, "train")
        step = a_step(uid, policy_version=number // 3)
        store.trajectories.append_sync(step)
        status = Status.FAILED if number == 5 else Status.COMPLETED
        done = Trajectory(uid=uid, prompt_uid=f"p{number // 2}", task=TASK, reward=number / 10, status=status)
        asyncio.run(store.trajectories.finish(done))

    def found(**filters: Any) -> list[str]:
        uids = [trajectory.uid for trajectory in store.trajectories.iterate(**filters)]
        assert store.trajectories.count(**filters) == len(uids)
        return uids

    assert found(prompt_uid="p1") == ["u2", "u3"]
    assert found(min_reward=0.2, max_reward=0.4) == ["u2", "u3", "u4"]
    assert found(policy_version=1) == ["u3", "u4", "u5"]
    assert found(status=Status.FAILED, policy_version=1) == ["u5"]
    assert found(policy_version=None, prompt_uid=None) == [f"u{number}" for number in range(6)]
    with pytest.raises(TypeError, match="did you mean 'policy_version'"):
        found(policy_versions=1)


def test_summaries_are_paged_and_count_steps_and_tokens(store: Store) -> None:
    for number in range(5):
        store.trajectories.begin(f"u{number}", "p", TASK, "train" if number else "val", train_step=number)
        for index in range(number):
            store.trajectories.append_sync(a_step(f"u{number}", index))
    first = store.trajectories.summaries(limit=3)
    rest = store.trajectories.summaries(limit=3, before=first[-1].id)
    assert [one.uid for one in (*first, *rest)] == ["u4", "u3", "u2", "u1", "u0"]
    assert [one.steps for one in (*first, *rest)] == [4, 3, 2, 1, 0]
    assert first[0].tokens == sum(len(step.response_ids) for step in store.trajectories.get("u4").steps) > 0
    assert (first[0].task, first[0].status, first[0].answer, first[0].reward) == (TASK, Status.RUNNING, None, None)
    oldest = store.trajectories.summaries(limit=9, newest_first=False, channel="train")
    assert [one.uid for one in oldest] == ["u1", "u2", "u3", "u4"]
