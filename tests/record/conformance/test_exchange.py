"""Exports are imported exactly, and unreadable files are errors with a location."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midstream.core.errors import RunError
from midstream.core.types import Status, Step, Task, Trajectory
from midstream.record import export_files, schema
from midstream.record.exchange import export_to, import_from
from midstream.record.store import Store
from midstream.record.trajectories import PAGE

TASK = Task(id="t", prompt=({"role": "user", "content": "q"},))
either = pytest.mark.parametrize("ending", ["jsonl", "parquet"])


def everything(store: Store) -> str:
    """Everything in a store except its row ids."""
    recorded = [replace(one, id=0) for one in store.trajectories.recorded()]
    uids = [one.trajectory.uid for one in recorded]
    groups = store.database.read(lambda connection: connection.execute(schema.groups.select()).all())
    annotated = [(store.annotations.curation(uid), store.annotations.feedback(uid)) for uid in uids]
    return repr((recorded, annotated, sorted(map(tuple, groups))))


def some(store: Store, count: int, *, first: int = 0, channel: str = "train") -> None:
    for number in range(first, first + count):
        uid = f"u{number}"
        store.trajectories.begin(uid, f"p{number // 2}", TASK, channel, train_step=number, group_size=2)
        step = Step(prompt_ids=(1, 2), response_ids=(3,), rollout_log_probs=(-0.25,), trajectory_uid=uid)
        asyncio.run(
            store.trajectories.finish(Trajectory(uid=uid, prompt_uid="", task=TASK, steps=(step,), reward=number / 2))
        )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_an_export_is_imported_exactly(
    store: Store,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    whole_trajectories: st.SearchStrategy[Trajectory],
) -> None:
    for old in [one.trajectory.uid for one in store.trajectories.recorded()]:  # of the example before
        store.trajectories.begin(old, "", TASK, "old", train_step=0)
    store.trajectories.discard_from(0)
    groups: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {"group_size": st.none() | st.integers(1, 3), "deadline": st.none() | st.floats(0, 9)}
    )
    for trajectory in data.draw(st.lists(whole_trajectories, max_size=3)):
        uid, channel = trajectory.uid, data.draw(st.sampled_from("ab"))
        store.trajectories.begin(uid, trajectory.prompt_uid, trajectory.task, channel, **data.draw(groups))
        asyncio.run(store.trajectories.finish(trajectory))
        if trajectory.steps and data.draw(st.booleans()):
            store.annotations.curate(uid, 0, trainable=False, tags=["x", "y"], note="\ud800")
            store.annotations.add_feedback(uid, "correction", text="\0", step_index=0, key="k")
        if data.draw(st.booleans()):
            store.annotations.curate(uid, quality="reject")
            store.annotations.add_feedback(uid, "rating", 0.1)
    store.groups.consume("run", [one.key for one in store.groups.lease("run", 1, "a", 60)], 3)
    folder, count = tmp_path_factory.mktemp("exchange"), store.trajectories.count()
    for name in ("out.jsonl", "out.parquet"):
        with Store(folder / f"{name}.db", durability="normal") as again:
            assert export_to(store, folder / name) == count
            assert import_from(again, folder / name).count == count
            assert everything(again) == everything(store)


@either
def test_a_store_imports_an_export_in_pages(store: Store, tmp_path: Path, ending: str) -> None:
    total = PAGE * 2 + 3
    with Store(tmp_path / "other.db", durability="normal") as other:
        some(other, total)
        assert export_to(other, tmp_path / f"out.{ending}") == total
        assert import_from(store, tmp_path / f"out.{ending}").count == total
        assert everything(store) == everything(other)
    assert [one.prompt_uid for one in store.groups.lease("run", 2, "train", 60)] == ["p0", "p1"]


def test_export_applies_its_filters(store: Store, tmp_path: Path) -> None:
    some(store, 4)
    some(store, 2, first=4, channel="val")
    assert export_to(store, tmp_path / "out.jsonl", channel="train", min_reward=1.0) == 2
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"format": "midstream", "schema_version": 3}
    assert [json.loads(line)["uid"] for line in lines[1:]] == ["u2", "u3"]
    assert json.loads(lines[1])["steps"][0]["prompt_ids"] == [1, 2]
    assert list(tmp_path.glob(".*")) == []


@either
def test_existing_trajectories_are_refused_or_skipped_unchanged(store: Store, tmp_path: Path, ending: str) -> None:
    with Store(tmp_path / "other.db", durability="normal") as other:
        some(other, 6)
        export_to(other, tmp_path / f"out.{ending}")
    some(store, 1, first=4, channel="mine")
    before = everything(store)
    place = "line 6" if ending == "jsonl" else "row 5"
    with pytest.raises(RunError, match=rf"out\.{ending}', {place}: trajectory 'u4' already exists in .*\n.*skip"):
        import_from(store, tmp_path / f"out.{ending}")
    assert everything(store) == before
    done = import_from(store, tmp_path / f"out.{ending}", existing="skip")
    assert (done.count, done.skipped) == (5, 1)
    assert (store.trajectories.count(channel="mine"), store.trajectories.count(channel="train")) == (1, 5)
    with pytest.raises(RunError, match="did you mean 'skip'"):
        import_from(store, tmp_path / f"out.{ending}", existing="skipp")  # pyright: ignore[reportArgumentType]


def test_leases_are_not_exported(store: Store, tmp_path: Path) -> None:
    some(store, 2)
    assert store.groups.lease("run", 1, "train", 60)
    export_to(store, tmp_path / "out.jsonl")
    with Store(tmp_path / "other.db") as other:
        import_from(other, tmp_path / "out.jsonl")
        assert other.groups.counts()["ready"] == 1


def a_record(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"curation": [], "feedback": [], "group": None, "channel": "train", "train_step": None}
    plain |= {"uid": "u", "prompt_uid": "p", "status": "completed", "created_at": 1.0, "ended_at": 2.0, "turns": 1}
    plain |= {"tool_calls": [], "answer": None, "error": "", "rewards": {}, "reward": None, "metadata": {}, "steps": []}
    return {**plain, "task": {"id": "t", "prompt": "q"}, **changes}


NESTED: Any = {"a": json.loads("[" * 200 + "]" * 200)}
GROUP = {"size": 1, "deadline": None, "ended": 1, "ready_at": 1.0, "owner": None, "train_step": None}
STEP = {"trajectory_uid": "u", "prompt_ids": [1], "response_ids": [2], "rollout_log_probs": None, "messages": []}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('{"uid": "u', "control character"),
        (json.dumps(a_record())[:-20], "Expecting"),
        ("[]", r"it is \[\]: .*dictionary"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        (json.dumps(a_record(metadata=NESTED)), "nested more than 100 deep"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [NESTED]}])), "nested more than 100 deep"),
        (json.dumps(a_record(answer={"!float": []})), "float"),
        (json.dumps(a_record(metadata={"!dict": [[[], 1]]})), "unhashable"),
        (json.dumps(a_record(metadata={"!tuple": 5})), "not iterable"),
        ("\udcff", "surrogates"),
        (json.dumps({"uid": "u"}), "it has no 'prompt_uid'"),
        (json.dumps(a_record(status="done")), "its status is 'done': Input should be 'running', 'completed'"),
        (json.dumps(a_record(reward="high")), "its reward is 'high': .*valid number"),
        (json.dumps(a_record(reward=True)), "its reward is True: .*valid number"),
        (json.dumps(a_record(reward=float("nan"))), "its reward is nan: .*finite"),
        (json.dumps(a_record(rewards={"correctness": "1"})), "its rewards.correctness is '1'"),
        (json.dumps(a_record(uid=None)), "its uid is None: .*string"),
        (json.dumps(a_record(uid="../../etc/passwd")), "its uid is '../../etc/passwd': a name is not a path"),
        (json.dumps(a_record(prompt_uid="..")), "its prompt_uid is '..': a name is not a path"),
        (json.dumps(a_record(channel="a\nb")), "a name has no control characters"),
        (json.dumps(a_record(uid="u" * 201)), "a name has 1 to 200 characters, not 201"),
        (
            json.dumps(a_record(task={"id": "t", "prompt": "q", "colour": 1})),
            "it has the unknown field 'task.colour'",
        ),
        (json.dumps(a_record(task={"id": "t", "prompt": ["q"]})), "its task.prompt"),
        (
            json.dumps(a_record(tool_calls=[{"tool": "t", "arguments": "x", "ok": True, "result": ""}])),
            "arguments is 'x'",
        ),
        (json.dumps(a_record(group="ready")), "its group is 'ready'"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "prompt_ids": ["a"]}])), "prompt_ids.0 is 'a': .*integer"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "prompt_ids": [-5]}])), "prompt_ids.0 is -5: .*equal to 0"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "prompt_ids": [2**40]}])), "prompt_ids.0 is 1099511627776"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "rollout_log_probs": [0.5]}])), "log_probs.0 is 0.5"),
        (
            json.dumps(a_record(steps=[{**STEP, "tools": [], "rollout_log_probs": [float("nan")]}])),
            "log_probs.0 is nan",
        ),
        *(
            (json.dumps(a_record(steps=[{**STEP, "tools": [], "temperature": value}])), "steps.0.temperature is")
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "latency_s": float("nan")}])), "steps.0.latency_s is nan"),
        (json.dumps(a_record(created_at=float("nan"))), "its created_at is nan: .*finite"),
        (json.dumps(a_record(ended_at=float("inf"))), "its ended_at is inf: .*finite"),
        *(
            (
                json.dumps(a_record(feedback=[{"trajectory_uid": "u", "kind": "reward", name: float("nan")}])),
                f"{name} is",
            )
            for name in ("value", "created_at")
        ),
        *(
            (json.dumps(a_record(group={**GROUP, "state": "ready", name: float("inf")})), f"group.{name} is inf")
            for name in ("deadline", "ready_at")
        ),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "messages": ["hi"]}])), "messages.0 is 'hi'"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "parent": 0}])), "parent is 0, which is not before"),
        (json.dumps(a_record(steps=[{**STEP, "tools": []}] * 2)), "steps.1.step_index is 0, which an earlier step has"),
        (
            json.dumps(a_record(steps=[{**STEP, "tools": [], "rollout_log_probs": []}])),
            "1 response tokens but 0",
        ),
        (json.dumps(a_record(steps=[{**STEP, "tools": "x"}])), "its steps.0.tools is 'x': .*list"),
        (json.dumps(a_record(steps=[{**STEP, "tools": [], "trajectory_uid": "v"}])), "of the trajectory 'v'"),
        (json.dumps(a_record(feedback=[{"trajectory_uid": "u", "kind": "thumbs", "value": 7}])), "value 7"),
        (json.dumps(a_record(group={"size": 1, "state": "ready"})), "it has no 'group.deadline'"),
        (json.dumps(a_record(group={**GROUP, "state": "leased"})), "its group.state is 'leased'"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_imported(tmp_path: Path, line: str, wrong: str) -> None:
    header = json.dumps({"format": "midstream", "schema_version": 2})
    text = "\n".join([header, json.dumps(a_record(uid="fine")), line, json.dumps(a_record(uid="last"))])
    (tmp_path / "in.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with Store(tmp_path / "store.db") as store:
        with pytest.raises(RunError, match=rf"in\.jsonl', line 3 is damaged: .*{wrong}"):
            import_from(store, tmp_path / "in.jsonl")
        assert store.trajectories.count() == 0
    (tmp_path / "fine.jsonl").write_text(f"{header}\n{json.dumps(a_record())}\n")
    with Store(tmp_path / "store.db") as store:
        assert import_from(store, tmp_path / "fine.jsonl").count == 1
        assert store.trajectories.get("u").status is Status.COMPLETED


@either
def test_steps_of_an_older_file_have_no_constraint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = tmp_path / f"out.{ending}"
    with Store(tmp_path / "old.db") as old:
        some(old, 1)
        with monkeypatch.context() as older:
            older.setattr(export_files, "HEADER", {"format": "midstream", "schema_version": 2})
            older.setattr(export_files, "_STEP_TEXT", export_files._STEP_TEXT - {"constraint"})
            export_to(old, path)
    if ending == "jsonl":
        path.write_text(path.read_text(encoding="utf-8").replace('"constraint":null,', ""), encoding="utf-8")
    assert b'"constraint"' not in path.read_bytes()
    with Store(tmp_path / "new.db") as new:
        assert import_from(new, path).count == 1
        assert new.trajectories.get("u0").steps[0].constraint is None


def test_a_file_of_another_format_or_version_is_refused(tmp_path: Path) -> None:
    def refused(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with Store(tmp_path / "store.db") as store, pytest.raises(RunError) as raised:
            import_from(store, tmp_path / name)
        return str(raised.value)

    assert "is not a Midstream export" in refused("a.jsonl", '{"question": "?"}\n')
    assert "is not a Midstream export" in refused("b.jsonl", "")
    assert "unsupported schema_version 99" in refused("c.jsonl", '{"format": "midstream", "schema_version": 99}\n')
    assert "is not a Parquet file" in refused("d.parquet", "no")
    assert "neither .jsonl nor .parquet" in refused("e.csv", "")
    with Store(tmp_path / "store.db") as store:
        with pytest.raises(RunError, match="cannot read"):
            import_from(store, tmp_path / "nowhere.jsonl")
        with pytest.raises(RunError, match="cannot read"):
            import_from(store, tmp_path / "nowhere.parquet")
        with pytest.raises(RunError, match="cannot write"):
            export_to(store, tmp_path / "no" / "folder.jsonl")


def test_a_damaged_parquet_file_says_where_and_nothing_is_imported(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with Store(tmp_path / "other.db", durability="normal") as other:
        some(other, 5)
        export_to(other, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    metadata = table.column("metadata").to_pylist()
    broken = table.set_column(
        table.schema.get_field_index("metadata"), "metadata", [[*metadata[:3], "{", *metadata[4:]]]
    )
    pq.write_table(broken.replace_schema_metadata(table.schema.metadata), tmp_path / "broken.parquet")
    with Store(tmp_path / "store.db") as store:
        with pytest.raises(RunError, match=r"broken\.parquet', row 4 is damaged"):
            import_from(store, tmp_path / "broken.parquet")
        assert store.trajectories.count() == 0
