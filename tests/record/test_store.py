"""The store gives back exactly what it took, in the order it took it, to readers who need not wait for writers."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from midstream.core.errors import RunError
from midstream.core.types import FinishReason, Status, Step, Task, ToolCall, Trajectory
from midstream.record.store import PAGE, Store

TASK = Task(id="t1", prompt="How many?", answer=["3", 3], metadata={"needs": ("search",), "by_year": {7: None}})


def a_step(uid: str, index: int = 0, **changes: Any) -> Step:
    step = Step(
        prompt_ids=(1, 2, 3),
        response_ids=(4, 5),
        rollout_log_probs=(-0.1, -1e-300),
        trajectory_uid=uid,
        prompt_uid="p",
        step_index=index,
        finish_reason=FinishReason.STOP,
    )
    return replace(step, **changes)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store.db", durability="normal") as store:
        yield store


text = st.text(st.characters(), max_size=12)  # surrogates and NUL included: models write them
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
floats = st.floats(allow_nan=False)
columns = floats.map(lambda number: number + 0.0)  # SQLite keeps no sign on a zero in a column of its own
leaves = st.none() | st.booleans() | st.integers() | floats | text
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
mappings = st.dictionaries(text, values, max_size=3)
messages = st.lists(st.fixed_dictionaries({"role": text, "content": text}), max_size=3).map(tuple)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=6).map(tuple)


@st.composite
def a_whole_trajectory(draw: st.DrawFn) -> Trajectory:
    uid, prompt_uid = draw(names), draw(names)
    steps = []
    for index in range(draw(st.integers(0, 3))):
        response = draw(tokens)
        probabilities = st.lists(floats, min_size=len(response), max_size=len(response)).map(tuple)
        steps.append(
            Step(
                prompt_ids=draw(tokens),
                response_ids=response,
                rollout_log_probs=draw(st.none() | probabilities),
                reward=draw(st.none() | columns),
                trajectory_uid=uid,
                prompt_uid=prompt_uid,
                step_index=index,
                policy_version=draw(st.integers(0, 2**31 - 1)),
                is_last=draw(st.booleans()),
                metadata=draw(mappings),
                role=draw(names),
                trainable=draw(st.booleans()),
                parent=draw(st.none() | st.integers(0, 9)),
                branch_reason=draw(st.just("") | names),
                temperature=draw(columns),
                messages=draw(messages),
                text=draw(text),
                finish_reason=draw(st.sampled_from(FinishReason)),
                latency_s=draw(columns),
            )
        )
    call = st.builds(
        ToolCall,
        tool=text,
        arguments=mappings,
        ok=st.booleans(),
        result=text,
        error_kind=text,
        latency_s=floats,
        step_index=st.none() | st.integers(0, 9),
        unmasked=text,
    )
    task = st.builds(Task, id=text, prompt=text | messages, answer=values, kind=text, split=text, metadata=mappings)
    return Trajectory(
        uid=uid,
        prompt_uid=prompt_uid,
        task=draw(task),
        steps=tuple(steps),
        tool_calls=tuple(draw(st.lists(call, max_size=2))),
        answer=draw(st.none() | text),
        turns=draw(st.integers(0, 9)),
        status=draw(st.sampled_from(Status)),
        error=draw(text),
        rewards=draw(st.dictionaries(text, st.none() | floats, max_size=3)),
        reward=draw(st.none() | columns),
        metadata=draw(mappings),
    )


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(trajectory=a_whole_trajectory())
def test_what_goes_in_comes_out(store: Store, trajectory: Trajectory) -> None:
    store.begin(trajectory.uid, trajectory.prompt_uid, trajectory.task, "train")
    for step in trajectory.steps:
        store.append_sync(replace(step, reward=None))
    asyncio.run(store.finish(trajectory))
    assert store.trajectory(trajectory.uid) == trajectory
    assert repr(store.trajectory(trajectory.uid)) == repr(
        trajectory
    )  # tells 1 from 1.0 and True, and a tuple from a list


def test_a_running_trajectory_can_be_read_with_its_steps(store: Store) -> None:
    store.begin("u", "p", TASK, "val", train_step=4)
    store.append_sync(a_step("u", 1))
    store.append_sync(a_step("u", 0))
    read = store.trajectory("u")
    assert (read.task, read.status, read.reward) == (TASK, Status.RUNNING, None)
    assert read.steps == (a_step("u", 0), a_step("u", 1))
    assert store.count(channel="val", train_step=4, status=Status.RUNNING) == 1


def test_the_same_step_again_replaces_it_and_an_update_changes_it(store: Store) -> None:
    store.begin("u", "p", TASK, "train")
    store.append_sync(a_step("u"))
    store.append_sync(a_step("u", text="again"))
    assert store.trajectory("u").steps == (a_step("u", text="again"),)
    changed = a_step("u", text="again", reward=0.5, is_last=True, metadata={"note": ["x"]})
    store.update_step(changed)
    assert store.trajectory("u").steps == (changed,)


def test_a_rerun_of_a_uid_starts_from_nothing(store: Store) -> None:
    store.begin("u", "p", TASK, "train", train_step=1)
    store.append_sync(a_step("u", 0))
    store.append_sync(a_step("u", 1))
    asyncio.run(store.finish(replace(store.trajectory("u"), status=Status.FAILED, error="crashed", reward=1.0)))
    store.begin("u", "p", TASK, "train", train_step=1)
    store.append_sync(a_step("u", 0))
    assert store.trajectory("u") == Trajectory(
        uid="u", prompt_uid="p", task=TASK, status=Status.RUNNING, steps=(a_step("u", 0),)
    )
    assert store.count() == 1


def test_finish_keeps_the_training_step_and_the_steps_it_is_not_given(store: Store) -> None:
    store.begin("u", "p", TASK, "train", train_step=3)
    store.append_sync(a_step("u"))
    asyncio.run(store.finish(Trajectory(uid="u", prompt_uid="p", task=TASK, status=Status.FAILED, error="boom")))
    read = store.trajectory("u")
    assert (read.status, read.error, read.steps) == (Status.FAILED, "boom", (a_step("u"),))
    assert store.count(train_step=3) == 1


def test_a_step_of_a_trajectory_nobody_began_is_kept(store: Store) -> None:
    store.append_sync(a_step("stray"), channel="online")
    assert store.trajectory("stray").steps == (a_step("stray"),)
    assert store.groups("online") == {"p": ["stray"]}


def test_trajectories_stream_in_order_and_by_filter(store: Store) -> None:
    total = PAGE * 2 + 5
    for number in range(total):
        store.begin(f"u{number}", f"p{number // 4}", TASK, "train" if number % 2 else "val", train_step=number // 10)
    in_order = [f"u{number}" for number in range(total)]
    assert [t.uid for t in store.trajectories()] == in_order
    assert [t.uid for t in store.trajectories(newest_first=True, limit=PAGE + 3)] == in_order[::-1][: PAGE + 3]
    assert [t.uid for t in store.trajectories(channel="val", train_step=1)] == ["u10", "u12", "u14", "u16", "u18"]
    assert list(store.trajectories(status=Status.COMPLETED)) == []
    assert list(store.trajectories(limit=0)) == []
    assert store.groups("val")["p0"] == ["u0", "u2"]
    assert (store.count(), store.count(channel="train")) == (total, total // 2)


def test_discard_from_a_step_leaves_what_came_before_and_what_has_no_step(store: Store) -> None:
    for step in (None, 0, 1, 2, 3):
        store.begin(f"u{step}", "p", TASK, "train", train_step=step)
        store.append_sync(a_step(f"u{step}"))
    store.discard_from(2)
    assert [t.uid for t in store.trajectories()] == ["uNone", "u0", "u1"]
    assert all(len(t.steps) == 1 for t in store.trajectories())
    store.begin("u3", "p", TASK, "train", train_step=3)
    assert store.trajectory("u3").steps == ()  # its steps went too


def test_many_callers_share_few_transactions(tmp_path: Path) -> None:
    async def caller(store: Store, uid: str) -> None:
        store.begin(uid, "p", TASK, "train")
        for index in range(20):
            await store.append(a_step(uid, index))

    async def everybody(store: Store) -> None:
        await asyncio.gather(*(caller(store, f"u{number}") for number in range(48)))

    with Store(tmp_path / "store.db") as store:
        asyncio.run(everybody(store))
        assert sum(len(t.steps) for t in store.trajectories()) == 48 * 20
        assert store.commits < 48 * 20 / 4


def test_reading_goes_on_while_others_write(store: Store) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            uid = f"u{number}"
            store.begin(uid, "p", TASK, "train")
            store.append_sync(a_step(uid))
            asyncio.run(store.finish(Trajectory(uid=uid, prompt_uid="p", task=TASK, steps=(a_step(uid),), reward=1.0)))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = 0
        while seen < 150:
            read = list(store.trajectories(status=Status.COMPLETED))
            assert len(read) >= seen and all(t.steps == (a_step(t.uid),) and t.reward == 1.0 for t in read)
            seen = len(read)
    finally:
        stop.set()
        writer.join()


def test_a_second_store_on_the_file_sees_what_was_acknowledged(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as writer, Store(str(tmp_path / "store.db")) as reader:
        writer.append_sync(a_step("u"))
        assert reader.trajectory("u").steps == (a_step("u"),)


def test_a_cancelled_append_is_kept_and_costs_nobody_else(store: Store) -> None:
    async def cancel_one() -> None:
        appends = [asyncio.ensure_future(store.append(a_step("u", index))) for index in range(8)]
        await asyncio.sleep(0)
        appends[3].cancel()
        results = await asyncio.gather(*appends, return_exceptions=True)
        assert [
            result for result in results if result is not None and not isinstance(result, asyncio.CancelledError)
        ] == []

    asyncio.run(cancel_one())
    assert len(store.trajectory("u").steps) == 8


def test_what_json_cannot_hold_is_refused_where_it_is_written(store: Store) -> None:
    with pytest.raises(RunError, match="metadata of step 0 of trajectory 'u': it holds a object"):
        store.append_sync(a_step("u", metadata={"handle": object()}))
    with pytest.raises(RunError, match=r"task of trajectory 'v'.*\n.*lists"):
        store.begin("v", "p", replace(TASK, metadata={"set": {1}}), "train")
    assert store.count() == 0


def test_a_row_the_database_refuses_costs_only_its_own_caller(store: Store) -> None:
    async def together() -> list[BaseException | None]:
        appends = [store.append(a_step("fine")), store.append(a_step("\ud800")), store.append(a_step("fine", 1))]
        return await asyncio.gather(*appends, return_exceptions=True)

    first, second, third = asyncio.run(together())
    assert first is None and third is None and isinstance(second, UnicodeEncodeError)
    assert len(store.trajectory("fine").steps) == 2


def test_a_write_nobody_waited_for_is_reported_later(store: Store) -> None:
    store.begin("\ud800", "p", TASK, "train")
    with pytest.raises(UnicodeEncodeError):
        store.flush()
    store.append_sync(a_step("u"))
    assert store.count() == 1


def test_a_full_disk_is_a_clear_error_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    def small(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("PRAGMA max_page_count=60")

    event.listen(Engine, "connect", small)
    try:
        with Store(tmp_path / "store.db") as store:
            acknowledged = 0
            with pytest.raises(RunError, match="no room left") as raised:
                for index in range(1000):
                    store.append_sync(a_step("u", index, text="x" * 2000))
                    acknowledged += 1
            assert "free disk space" in raised.value.hint
            assert acknowledged > 10
            assert len(store.trajectory("u").steps) == acknowledged
    finally:
        event.remove(Engine, "connect", small)


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("These are my notes, not a database.\n" * 40)
    with pytest.raises(RunError, match="not a database"):
        Store(other)
    assert other.read_text().startswith("These are my notes")
    with pytest.raises(RunError, match="cannot open"):
        Store(tmp_path / "no" / "such" / "folder.db")
    with pytest.raises(RunError, match="cannot open"):
        Store(tmp_path)
    with pytest.raises(RunError, match="no store on 'mysql'"):
        Store("mysql://host/name")
    with pytest.raises(RunError, match="did you mean 'normal'"):
        Store(tmp_path / "store.db", durability="norml")  # pyright: ignore[reportArgumentType]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store.db").close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(RunError, match=r"another version of Midstream \(schema 99"):
        Store(tmp_path / "store.db")


def test_an_unknown_uid_and_a_closed_store_say_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    with pytest.raises(RunError, match="no trajectory 'nobody'"):
        store.trajectory("nobody")
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="closed"):
        store.append_sync(a_step("u"))


def test_close_writes_what_still_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    for number in range(50):
        store.begin(f"u{number}", "p", TASK, "train")
    store.close()
    with Store(tmp_path / "store.db") as again:
        assert again.count() == 50


def test_infinities_and_zero_signs_survive(store: Store) -> None:
    step = a_step("u", rollout_log_probs=(-math.inf, -0.0), reward=math.inf, metadata={"x": -math.inf})
    store.append_sync(step)
    read = store.trajectory("u").steps[0]
    assert read == step and repr(read) == repr(step)
