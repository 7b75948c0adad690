"""The small built-in tools: units, files, SQL, search over other texts, another model."""

import asyncio
import json
import os
import resource
import sqlite3
import threading
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from midstream.core.errors import ConfigError
from midstream.tools import Toolbox, ToolUseConfig
from midstream.tools.errors import ToolError
from midstream.tools.load import BUILT_IN, load
from midstream.tools.sandbox.processes import usage
from midstream.tools.sql import SqlSettings, sql_toolset


def run(name, settings, *calls):
    """The results of calls of one tool with `settings`."""
    loaded = load([name], {name: settings} if settings else {})
    box = Toolbox(loaded.tools, toolsets=loaded.toolsets, use=ToolUseConfig(outage="report"))
    return asyncio.run(_run(box, name, calls))


async def _run(box, name, calls):
    async with AsyncExitStack() as resources:
        session = box.session()
        await session.open(resources)
        return [await session.call(name, arguments) for arguments in calls]


@pytest.mark.parametrize(
    ("value", "source", "target", "shown"),
    [
        (5, "mile", "kilometer", "8.04672 kilometer"),
        (100, "degC", "degF", "212 degF"),
        (36, "km/h", "m/s", "10 m/s"),
        (1, "m**2", "cm^2", "10000 cm^2"),
    ],
)
def test_numbers_are_converted_between_units(value, source, target, shown):
    (done,) = run("convert_units", {}, {"value": value, "from_unit": source, "to_unit": target})
    assert done.result == shown


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("mile", "second"),
        ("flurb", "meter"),
        ("m**99999999", "m"),
        ("m**9**9**9**9**9", "m"),
        ("__import__('os')", "m"),
        ("(" * 59, "m"),
        ("", "m"),
        ("m" * 5000, "m"),
    ],
)
def test_text_that_is_not_a_unit_is_refused_immediately(source, target):
    (done,) = run("convert_units", {}, {"value": 1, "from_unit": source, "to_unit": target})
    assert done.error_kind == "raised", done.result
    assert len(done.result) < 300


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "inside"
    (inside / "notes").mkdir(parents=True)
    (inside / "notes" / "a.txt").write_text("one\ntwo\nthree\n")
    (inside / "empty.txt").write_text("")
    (inside / "binary").write_bytes(b"\xff\xfe\x00")
    (inside / "large.txt").write_text("x" * 5000)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", inside / "link.txt")
    os.symlink(tmp_path / "outside", inside / "links")
    os.symlink("notes", inside / "own")
    os.mkfifo(inside / "pipe")
    return inside


def test_files_are_read_in_parts(folder):
    settings = {"folder": str(folder), "max_lines": 2}
    first, rest, empty, beyond = run(
        "read_file",
        settings,
        {"path": "notes/a.txt"},
        {"path": "notes/a.txt", "first_line": 3},
        {"path": "empty.txt"},
        {"path": "notes/a.txt", "first_line": 4},
    )
    assert first.result == "one\ntwo\n[lines 3 to 3 are left]"
    assert rest.result == "three" and empty.result == ""
    assert beyond.result == "Error: the file has 3 lines"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "notes/../../secret.txt",
        "/etc/passwd",
        "link.txt",
        "links/b.txt",
        "own/a.txt",
        "notes",
        "pipe",
        "binary",
        "large.txt",
        "missing.txt",
        "",
        ".",
        "notes//a.txt",
        "a\x00b",
        "x" * 5000,
    ],
)
def test_only_text_files_inside_the_folder_are_read(folder, path):
    (done,) = run("read_file", {"folder": str(folder), "max_kb": 4}, {"path": path})
    assert done.error_kind == "raised" and "secret\n" not in done.result, done.result


@pytest.fixture(params=["sqlite", "duckdb"])
def database(request, tmp_path):
    path = tmp_path / "shop.db"
    if request.param == "sqlite":
        connection = sqlite3.connect(path)
    else:
        duckdb = pytest.importorskip("duckdb")
        connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE items (id INTEGER, name TEXT, price DOUBLE)")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)"
    connection.execute(f"INSERT INTO items {numbers} SELECT i, 'item ' || i, i * 1.5 FROM n")
    connection.commit()
    connection.close()
    (tmp_path / "secret.csv").write_text("a,b\nsecret,1\n")
    return request.param, path


def test_a_query_returns_columns_and_rows(database):
    _, path = database
    counted, listed = run(
        "sql",
        {"path": str(path), "max_rows": 3},
        {"query": "SELECT count(*) AS n, sum(price) AS total FROM items WHERE id <= 10"},
        {"query": "WITH cheap AS (SELECT * FROM items ORDER BY price) SELECT id, name FROM cheap"},
    )
    assert counted.result == "n | total\n10 | 82.5"
    assert listed.result == "id | name\n1 | item 1\n2 | item 2\n3 | item 3\n[more than 3 rows]"


COUNT = {"query": "SELECT count(*) FROM items"}
ATTACKS = [
    "INSERT INTO items VALUES (1, 'x', 2)",
    "DELETE FROM items",
    "DROP TABLE items",
    "CREATE TABLE t (a INTEGER)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "ATTACH '{folder}/other.db' AS other",
    "ATTACH ':memory:' AS other",
    "DETACH items",
    "PRAGMA writable_schema = 1",
    "PRAGMA database_list",
    "VACUUM INTO '{folder}/copy.db'",
    "SELECT load_extension('x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('{folder}/out', 'x')",
    "SELECT 1; DROP TABLE items",
    "SELECT 1; SELECT 2",
    "COPY items TO '{folder}/out.csv'",
    "COPY (SELECT 1) TO '{folder}/out.csv'",
    "EXPORT DATABASE '{folder}/out'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_csv('{folder}/secret.csv')",
    "SELECT * FROM '{folder}/secret.csv'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_blob('{folder}/secret.csv')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "CALL pragma_version()",
    "SELECT * FROM read_csv('http://127.0.0.1:1/a.csv')",
    "EXPLAIN ANALYZE DELETE FROM items",
    "not sql at all",
    "",
    "SELECT " + "1+" * 60000 + "1",
]


def test_a_query_can_only_read_tables(database):
    _, path = database
    queries = [query.replace("{folder}", str(path.parent)) for query in ATTACKS]
    before = sorted(path.parent.iterdir())
    *refused, after = run("sql", {"path": str(path)}, *({"query": query} for query in queries), COUNT)
    for query, done in zip(queries, refused, strict=True):
        assert done.error_kind == "raised", (query[:80], done.result)
        assert "root:" not in done.result
    assert after.result.endswith("100") and sorted(path.parent.iterdir()) == before


def test_an_endless_query_ends(database):
    _, path = database
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    done, again = run("sql", {"path": str(path), "timeout_s": 0.3}, {"query": endless}, {"query": "SELECT 1"})
    assert "took longer than 0.3 s" in done.result and again.ok


def test_an_uninterruptible_query_ends_at_the_time_limit(database):
    kind, path = database
    if kind == "duckdb":
        pytest.skip("SQLite's instr never looks at the time")
    query = {"query": "SELECT instr(hex(zeroblob(4900000)), hex(zeroblob(2400000)) || '1')"}
    before = usage(os.getpid()).pids
    (done,) = run("sql", {"path": str(path), "timeout_s": 0.3}, query)
    assert "took longer than 0.3 s" in done.result
    assert usage(os.getpid()).pids == before and not [one for one in threading.enumerate() if "sql" in one.name]


def test_a_cancelled_query_leaves_no_process(database):
    _, path = database
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    toolset = sql_toolset(SqlSettings(path=str(path)))

    async def cancelled():
        call = asyncio.ensure_future(toolset.call("sql", {"query": endless}))
        await asyncio.sleep(0.3)
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()

    before = usage(os.getpid()).pids
    asyncio.run(cancelled())
    assert usage(os.getpid()).pids == before


BIG_QUERIES = {
    "sqlite": [
        "SELECT " + ", ".join(f"hex(zeroblob(4900000 + {n}))" for n in range(60)),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT length(hex(zeroblob(100000)) || i) FROM n ORDER BY hex(zeroblob(100000 + i))",
    ],
    "duckdb": [
        "SELECT " + ", ".join(f"repeat('{n}', 5000000)" for n in range(8)) + " FROM range(51)",
        "SELECT list(repeat('x', 100000) || i) FROM range(1000000) AS t(i)",
    ],
}


def test_a_query_cannot_exceed_its_memory_limit(database):
    kind, path = database
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queries = [{"query": query} for query in BIG_QUERIES[kind]]
    settings = {"path": str(path), "memory_mb": 32, "timeout_s": 60}
    *done, after = run("sql", settings, *queries, COUNT)
    assert [one.result for one in done] == ["Error: the query needs too much memory"] * len(queries)
    assert after.ok and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_long_values_are_cut_and_large_results_refused(database):
    kind, path = database
    text = "printf('%020000d', 0)" if kind == "sqlite" else "repeat('0', 20000)"
    name = "WITH a AS (SELECT group_concat(name, '') AS n FROM items)"
    many = f"{name} SELECT n, n, n, n, n, n, n, n FROM a, items, items AS b"
    toolset = sql_toolset(SqlSettings(path=str(path), max_rows=1000))
    (part,) = asyncio.run(toolset.call("sql", {"query": f"SELECT {text}"})).parts
    assert len(part.data["rows"][0][0]) == 10_000 and part.data["rows"][0][0].startswith("000")
    with pytest.raises(ToolError, match="the result is larger than 4 MB"):
        asyncio.run(toolset.call("sql", {"query": many}))


def test_search_finds_passages_of_own_texts(tmp_path):
    lines = [{"id": "a", "text": "Tides follow the moon."}, {"text": "Coral is an animal."}]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b.md").write_text("Lichen is two things.\n\nMoss is\none.")
    found, nothing = run("search", {"documents": str(tmp_path / "facts.jsonl")}, {"query": "coral?"}, {"query": "zinc"})
    assert found.result == "Coral is an animal." and nothing.result == "Error: no result"
    (two,) = run("search", {"documents": str(tmp_path / "folder"), "k": 2}, {"query": "what is moss, is lichen"})
    assert sorted(two.result.splitlines()) == ["Lichen is two things.", "Moss is one."]
    with pytest.raises(ConfigError, match="line 1"):
        (tmp_path / "bad.jsonl").write_text("[1]")
        run("search", {"documents": str(tmp_path / "bad.jsonl")}, {"query": "a"})


class Sayings:
    """An index of one's own."""

    def best(self, query, k):
        from midstream.tools.search import Passage

        return [Passage(f"{query}!", "me")] * k


def test_search_uses_an_index_of_the_user():
    (done,) = run("search", {"index": f"{__name__}:Sayings", "k": 2}, {"query": "Hey"})
    assert done.result == "Hey!\nHey!"


@pytest.fixture
def model():
    """A server that answers like a model, with status 500 for the word `down`."""

    class Model(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
            down = "down" in asked[-1]["content"]
            message = {"content": f"{asked[0]['role']}: {asked[-1]['content'].upper()}"}
            body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            self.send_response(404 if down else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def test_the_generalist_asks_a_model(model):
    answered, down = run("generalist", {"url": model}, {"question": "hello"}, {"question": "down"})
    assert answered.result == "system: HELLO"
    assert down.error_kind == "unavailable"
    with pytest.raises(ConfigError, match="url: is required"):
        load(["generalist"])


def test_every_built_in_tool_has_a_card_with_an_example_or_a_practice(tmp_path):
    settings = {
        "generalist": {"url": "http://127.0.0.1/v1"},
        "read_file": {"folder": str(tmp_path)},
        "sql": {"path": str(tmp_path / "a.db")},
        "web_search": {"backend": "duckduckgo"},
    }
    sqlite3.connect(tmp_path / "a.db").execute("CREATE TABLE t (a)").connection.close()
    loaded = load(list(BUILT_IN), settings)
    cards = {tool.name: tool for tool in Toolbox(loaded.tools, toolsets=loaded.toolsets).known}
    assert set(cards) == set(BUILT_IN)
    for spec in cards.values():
        assert spec.description and spec.returns and (spec.examples or spec.best_practices), spec.name
