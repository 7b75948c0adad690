"""A memory that begins with records: filled once, by key or not, and kept apart by namespace."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from midstream.core.errors import ConfigError
from midstream.memory import initial
from midstream.memory.retrieve import MemorySettings, MemoryToolset
from midstream.tools import Toolbox
from midstream.tools.load import load

RECORDS = [
    {"key": "Ann", "text": "Ann ordered 14 brass lamps.", "source": "orders"},
    {"text": "The shop closes at six.", "importance": 0.9},
]


def ask(*asked, **settings):
    """Results of `memory_retrieve` in one trajectory for each of `asked`, all at once."""
    from midstream.agents.toolsets import MORE

    loaded = load(["memory_retrieve"], {"memory_retrieve": {"namespace": "shop", **settings}}, MORE)
    box = Toolbox(toolsets=loaded.toolsets)

    async def trajectory(arguments):
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            return (await session.call("memory_retrieve", arguments)).result

    async def all_of_them():
        return await asyncio.gather(*map(trajectory, asked))

    return asyncio.run(all_of_them())


def test_trajectories_begin_with_the_records():
    found = ask(
        {"query": "what did Ann order"}, {"key": "Ann"}, {"query": "closes"}, records=f"{__name__}:RECORDS", k=1
    )
    assert found == ["Ann ordered 14 brass lamps.", "Ann ordered 14 brass lamps.", "The shop closes at six."]


def test_records_are_added_to_a_database_once_and_stay(tmp_path, monkeypatch):
    database, file = str(tmp_path / "memory.db"), tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in RECORDS))

    async def memories():
        toolset = MemoryToolset(MemorySettings(database=database, namespace="shop", records=str(file)))
        await toolset.open()
        try:
            found = await toolset.memory.retrieve("Ann shop closes", k=9)
            return sorted((one.id, one.text, one.sources) for one in found)
        finally:
            await toolset.close()

    first = asyncio.run(memories())
    assert [one[2] for one in first] == [("orders",), ("records.jsonl:2",)]
    monkeypatch.setattr(initial, "_filled", set())  # as in another process
    assert asyncio.run(memories()) == first
    assert ask({"key": "Ann"}, database=database, namespace="other") == ["Error: nothing is remembered about that"]


def test_what_an_agent_stored_under_the_key_of_a_record_stays(tmp_path, monkeypatch):
    settings = {"database": str(tmp_path / "memory.db"), "records": f"{__name__}:RECORDS"}

    async def changed():
        toolset = MemoryToolset(MemorySettings.model_validate({"namespace": "shop", **settings}))
        await toolset.open()
        try:
            await toolset.memory.add("Ann ordered nothing.", key="Ann")
        finally:
            await toolset.close()

    asyncio.run(changed())
    monkeypatch.setattr(initial, "_filled", set())  # as in another process
    assert ask({"key": "Ann"}, **settings) == ["Ann ordered nothing."]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"text": "x", "key": 3}, "`key` is text"),
        ({"text": "x", "importance": "high"}, "`importance` a number"),
        ({"key": "x"}, "no JSON object with 'text'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, record, problem):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"memory_retrieve\.records") as raised:
        ask({"query": "x"}, records=str(file))
    assert problem in str(raised.value)


def test_a_memory_without_database_and_records_is_refused():
    with pytest.raises(ConfigError, match="set database, records or both"):
        ask({"query": "x"})
