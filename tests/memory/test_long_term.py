"""Long-term memory on SQLite and PostgreSQL: found by words, vector and key; namespaces, merging, decay, pruning."""

import asyncio
from contextlib import AsyncExitStack, closing

import numpy as np
import pytest

from midstream.core.errors import ConfigError
from midstream.memory import long_term
from midstream.memory.embedding import HashingEmbedder, load_embedder
from midstream.memory.long_term import LongTermMemory, Ranking
from midstream.memory.reflections import Reflections
from midstream.memory.retrieve import MemorySettings, MemoryToolset, _databases
from midstream.memory.schema import memories
from midstream.store.database import Database
from midstream.store.schema import schemas
from midstream.tools import Toolbox
from midstream.tools.load import load

FACTS = {
    "The customer lives in Lima.": "crm",
    "Refunds need the order number.": "handbook",
    "The office opens at nine.": "handbook",
    "退货需要订单号": "handbook",
}


@pytest.fixture
def sqlite(tmp_path):
    return str(tmp_path / "memory.db")


def run(database, scenario, **options):
    """`scenario` with a memory of `FACTS`."""

    async def with_memory():
        with closing(Database(database)) as opened:
            memory = LongTermMemory(opened, "desk", options.pop("embedder", HashingEmbedder()), **options)
            for text, source in FACTS.items():
                await memory.add(text, source=source)
            return await scenario(memory)

    return asyncio.run(with_memory())


QUERIES = {
    "where does the customer live?": "The customer lives in Lima.",
    "how do refunds work": "Refunds need the order number.",
    "订单号是什么": "退货需要订单号",
}


@pytest.mark.parametrize("embedder", [None, HashingEmbedder()])
def test_a_memory_is_found_by_its_content(database, embedder):
    async def scenario(memory):
        found = [(await memory.retrieve(query, k=1))[0] for query in QUERIES]
        odd = [await memory.retrieve(query) for query in ("", "!!", '"; DROP TABLE memories; --')]
        return found, odd, await memory.retrieve("zebra")

    found, odd, nothing = run(database, scenario, embedder=embedder)
    assert [one.text for one in found] == list(QUERIES.values())
    assert all(one.sources == (FACTS[one.text],) and one.score > 0 for one in found)
    assert all(len(one) < 4 for one in odd)
    if embedder is None:
        assert nothing == []


def test_a_misspelt_word_is_found_by_vector(sqlite):
    async def scenario(memory):
        return await memory.retrieve("refundz", k=1)

    assert run(sqlite, scenario)[0].text == "Refunds need the order number."


def test_namespaces_do_not_see_each_other(database):
    async def scenario(memory):
        other = LongTermMemory(memory.database, "other", memory.embedder)
        empty = await other.retrieve("customer Lima refunds office")
        await other.add("The customer lives in Quito.", key="home")
        await memory.forget(*[one.id for one in await other.retrieve("customer")])
        return empty, await memory.get("home"), await memory.retrieve("customer", k=9), await other.retrieve("customer")

    empty, home, own, others = run(database, scenario)
    assert empty == [] and home is None
    assert "The customer lives in Quito." not in [one.text for one in own]
    assert [one.text for one in others] == ["The customer lives in Quito."]


def test_words_of_other_namespaces_do_not_change_the_results(database):
    query = "refunds w1 w2 w3 w4 w5 w6 w7 w8"

    async def scenario(memory):
        await memory.add("Refunds take a week.")
        before = await memory.retrieve(query)
        other = LongTermMemory(memory.database, "other", memory.embedder)
        await other.add("w1 w2 w3 w4 w5 w6 w7 w8")
        return before, await memory.retrieve(query)

    before, after = run(database, scenario, embedder=None)
    assert len(before) == 2 and [one.text for one in before] == [one.text for one in after]


def test_an_older_database_is_indexed_again(database):
    async def scenario(memory):
        def make_old(connection):
            connection.execute(memories.update().values(words="nsdesk refunds"))
            connection.execute(schemas.update().where(schemas.c.name == "memory").values(version=1))

        await memory.database.submit(lambda transaction: make_old(transaction.connection))
        with closing(Database(database)) as opened:
            return await LongTermMemory(opened, "desk").retrieve("who lives in Lima", k=1)

    assert run(database, scenario)[0].text == "The customer lives in Lima."


def test_duplicates_are_merged_and_keep_both_sources(database):
    async def scenario(memory):
        first = await memory.add("the customer LIVES in lima", source="call", importance=0.9)
        nearly = await memory.add("The customer lives in Lima..", source="mail")
        apart = await memory.add("The customer lives in Lima.", kind="guess")
        return first, nearly, apart, await memory.retrieve("customer Lima", k=9, kind="fact")

    first, nearly, apart, found = run(database, scenario)
    assert first == nearly != apart
    assert found[0].sources == ("crm", "call", "mail") and found[0].importance == 0.9
    assert sum("Lima" in one.text for one in found) == 1


def test_a_key_returns_its_latest_memory(sqlite):
    async def scenario(memory):
        await memory.add("Lima", key="home")
        await memory.add("Quito", key="home")
        return await memory.get("home"), await memory.get("work")

    home, work = run(sqlite, scenario)
    assert home.text == "Quito" and work is None


@pytest.mark.parametrize("embedder", [None, HashingEmbedder()])
def test_keys_with_the_same_text_keep_their_own_memories(database, embedder):
    texts = {"likes_tea": "yes", "likes_coffee": "yes", "p": "x = -5", "q": "x = 5", "sad": ":-(", "glad": ":-)"}

    async def scenario(memory):
        for key, text in texts.items():
            await memory.add(text, key=key)
        await memory.add("yes")
        await memory.add("x = 5")
        return {key: (await memory.get(key)).text for key in texts}

    assert run(database, scenario, embedder=embedder) == texts


_LONG = "The delivery address of the customer {0}, who ordered the large {1} table in March, is {2} in Springfield"


@pytest.mark.parametrize("embedder", [None, HashingEmbedder()])
@pytest.mark.parametrize(
    "texts",
    [
        ["the balance is 1.5", "the balance is -1.5", "the balance is 15"],
        ["C# is liked", "C++ is liked"],
        [_LONG.format("Maria", "walnut", "12 Main Street"), _LONG.format("Maria", "walnut", "87 Main Street")],
        [_LONG.format("Maria", "walnut", "12 Main Street"), _LONG.format("Marta", "walnut", "12 Main Street")],
    ],
)
def test_texts_that_differ_in_a_name_number_or_symbol_are_not_merged(database, embedder, texts):
    async def scenario(memory):
        for text in texts:
            await memory.add(text)
        return [one.text for one in await memory.retrieve(texts[0], k=9)]

    assert set(texts) <= set(run(database, scenario, embedder=embedder))


def test_nearly_equal_texts_are_merged_and_the_newer_text_is_kept(database):
    old, new = (_LONG.format("Maria", wood, "12 Main Street") for wood in ("walnut", "walnuts"))

    async def scenario(memory):
        first = await memory.add(old, source="call")
        second = await memory.add(new, source="mail")
        return first, second, await memory.retrieve("walnuts delivery", k=1), await memory.add(f" {new} ")

    first, second, (found,), again = run(database, scenario)
    assert first == second == again
    assert found.text == new and found.sources == ("call", "mail")


def test_equally_relevant_memories_are_ranked_by_importance_and_recency(sqlite, clock):
    async def scenario(memory):
        await memory.add("Tea is served on Monday", importance=0.1)
        clock.advance(30 * 86_400)
        await memory.add("Tea is served on Friday", importance=0.1)
        recent = await memory.retrieve("when is tea served", k=2)
        await memory.add("Tea is served on Monday", importance=1.0)
        return [one.text for one in recent], [one.text for one in await memory.retrieve("when is tea served", k=2)]

    recent, important = run(sqlite, scenario, embedder=None)
    assert recent == ["Tea is served on Friday", "Tea is served on Monday"]
    assert important == ["Tea is served on Monday", "Tea is served on Friday"]


def test_pruning_keeps_used_memories(sqlite, clock):
    async def scenario(memory):
        clock.advance(60 * 86_400)
        await memory.retrieve("refunds", k=1, touch=True)
        removed = await memory.prune(keep=1)
        return removed, await memory.retrieve("refunds customer office", k=9)

    removed, left = run(sqlite, scenario, embedder=None)
    assert removed == 3 and [one.text for one in left] == ["Refunds need the order number."] and left[0].uses == 1


def test_a_large_namespace_is_searched_by_buckets(sqlite, monkeypatch):
    monkeypatch.setattr(long_term, "EXACT_UP_TO", 2)

    async def scenario(memory):
        return await memory.retrieve("The office opens at nine.", k=1)

    assert run(sqlite, scenario)[0].text == "The office opens at nine."


def test_vectors_have_length_one_and_do_not_change():
    one, two = HashingEmbedder(64).embed(["Refunds need the order number.", ""])
    assert np.linalg.norm(one) == pytest.approx(1) and np.linalg.norm(two) == 0
    assert np.array_equal(one, HashingEmbedder(64).embed(["refunds need the ORDER number"])[0])
    assert load_embedder("none") is None
    with pytest.raises(ConfigError, match="no embedder 'bge'"):
        load_embedder("bge")


def test_reflections_are_found_for_similar_situations(sqlite):
    async def scenario(memory):
        reflections = Reflections(memory)
        await reflections.add("search for a population", "no result", "ask for one country at a time", source="t1")
        await reflections.add("a division", "division by zero", "check the divisor")
        return await reflections.lessons("searching the population of two countries", k=1)

    (lesson,) = run(sqlite, scenario)
    assert lesson == "search for a population; went wrong: no result; next time: ask for one country at a time"


def test_the_memory_tools_store_and_retrieve(tmp_path):
    where = str(tmp_path / "memory.db")
    settings = {"database": where, "namespace": "desk", "write": True, "k": 1}
    from midstream.agents.toolsets import MORE

    loaded = load(["memory_retrieve"], {"memory_retrieve": settings}, MORE)
    box = Toolbox(loaded.tools, toolsets=loaded.toolsets)

    async def trajectory(*calls):
        async with AsyncExitStack() as resources:
            session = box.session()
            await session.open(resources)
            return [(await session.call(name, arguments)).result for name, arguments in calls]

    stored = asyncio.run(
        trajectory(
            ("memory_retrieve", {"query": "tea"}),
            ("memory_store", {"text": "Ana drinks tea.", "key": "ana", "importance": 0.9}),
            ("memory_store", {"text": "Ben drinks coffee."}),
            ("memory_retrieve", {}),
        )
    )
    assert stored == [
        "Error: nothing is remembered about that",
        "remembered",
        "remembered",
        "Error: give a query or a key",
    ]
    recalled = asyncio.run(
        trajectory(("memory_retrieve", {"key": "ana"}), ("memory_retrieve", {"query": "who takes coffee"}))
    )
    assert recalled == ["Ana drinks tea.", "Ben drinks coffee."]
    assert len(load(["memory_retrieve"], {"memory_retrieve": settings | {"write": False}}, MORE).toolsets[0].specs) == 1
    assert Ranking().half_life_days == 7.0


def test_a_memory_that_cannot_be_opened_releases_its_database(tmp_path):
    settings = MemorySettings(database=str(tmp_path / "memory.sqlite"), namespace="n", embedder="nope")

    async def scenario():
        with pytest.raises(ConfigError):
            await MemoryToolset(settings).open()
        assert _databases._by_loop[asyncio.get_running_loop()] == {}

    asyncio.run(scenario())
