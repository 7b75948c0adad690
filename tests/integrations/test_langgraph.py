"""`StoreSaver` without a graph: what the conformance suite does not look at (`make test-suites` runs that)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

pytest.importorskip("langgraph.checkpoint.base", reason="pip install 'midstream[langgraph]'")

from midstream.integrations.langgraph import StoreSaver
from midstream.integrations.langgraph.tables import values
from midstream.store import Database


def put(saver: StoreSaver, number: int, channels: dict[str, Any], changed: tuple[str, ...], **metadata: Any) -> Any:
    """Store the checkpoint after the one before `number`; a channel's version is the number it was changed at."""
    parent = {"checkpoint_id": f"{number - 1:04}"} if number else {}
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "", **parent}}
    versions = {name: value[1] for name, value in channels.items()}
    checkpoint: Any = {
        "v": 4,
        "id": f"{number:04}",
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_values": {name: value[0] for name, value in channels.items()},
        "channel_versions": versions,
        "versions_seen": {},
        "updated_channels": list(changed),
    }
    described: Any = {"source": "loop", "step": number, **metadata}
    return saver.put(config, checkpoint, described, {name: versions[name] for name in changed})


def stored(database: Database) -> int:
    return database.read(lambda connection: connection.scalar(sa.select(sa.func.count()).select_from(values))) or 0


def test_a_value_is_stored_when_it_changes_and_deleted_when_nothing_has_it(tmp_path: Path) -> None:
    with Database(tmp_path / "store.sqlite") as database:
        saver = StoreSaver(database)
        put(saver, 0, {"document": ("long", "1"), "count": (0, "1")}, ("document", "count"))
        for number in range(1, 5):
            last = put(saver, number, {"document": ("long", "1"), "count": (number, str(number + 1))}, ("count",))
        assert stored(database) == 1 + 5
        found = StoreSaver(database).get_tuple(last)
        assert found is not None and found.checkpoint["channel_values"] == {"document": "long", "count": 4}
        saver.prune(["t"])
        assert stored(database) == 2
        assert [one.checkpoint["id"] for one in saver.list(None)] == ["0004"]


def test_a_value_that_another_process_deleted_is_stored_again(tmp_path: Path) -> None:
    with Database(tmp_path / "store.sqlite") as database:
        saver = StoreSaver(database)
        put(saver, 0, {"document": ("long", "1")}, ("document",))
        StoreSaver(database).delete_thread("t")
        last = put(saver, 1, {"document": ("long", "1")}, ())
        found = saver.get_tuple(last)
        assert found is not None and found.checkpoint["channel_values"] == {"document": "long"}


def test_pruning_keeps_what_a_channel_is_rebuilt_from(tmp_path: Path) -> None:
    """A delta channel has no value in a checkpoint, but writes since an ancestor that has one."""
    with Database(tmp_path / "store.sqlite") as database:
        saver = StoreSaver(database)
        put(saver, 0, {"messages": (["a"], "1")}, ("messages",))
        put(saver, 1, {"messages": (["a", "b"], "2")}, ("messages",))
        for number in (2, 3):
            config = put(saver, number, {}, (), counters_since_delta_snapshot={"messages": (number - 1, number - 1)})
            saver.put_writes(config, [("messages", [str(number)])], "task")
        saver.prune(["t"])
        assert [one.checkpoint["id"] for one in saver.list(None)] == ["0003", "0002", "0001"]
        history = saver.get_delta_channel_history(config=config, channels=["messages"])["messages"]
        assert history["seed"] == ["a", "b"] and [write[2] for write in history["writes"]] == [["2"]]


def test_a_strategy_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with Database(tmp_path / "store.sqlite") as database, pytest.raises(ValueError, match="'keep_latest' or 'delete'"):
        StoreSaver(database).prune(["t"], strategy="latest")
