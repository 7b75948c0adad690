"""A session converts every call, valid or not, to a ToolCall, within budgets and time limits."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.errors import ConfigError
from midstream.tools import Toolbox, load_tools, tool


@tool
def add(a: int, b: float = 0.5, tags: list[str] | None = None) -> float:
    """Add two numbers."""
    return a + b


@tool(timeout_s=0.1)
def hang() -> str:
    """Never finish in time."""
    time.sleep(30)
    return "late"


@tool(timeout_s=0.1)
async def stubborn() -> str:
    """Swallows its cancellation."""
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        await asyncio.sleep(1)
    return "late"


def call(tools, name, arguments, **options):
    return asyncio.run(Toolbox(tools, **options).session().call(name, arguments, step_index=4))


def test_a_valid_call_returns_its_result():
    done = call([add], "add", {"a": 2, "b": 3})
    assert (done.ok, done.result, done.error_kind, done.step_index) == (True, "5.0", "", 4)
    assert done.latency_s > 0


def test_a_result_is_encodable_text():
    @tool
    def cut() -> str:
        """Cuts text anywhere."""
        return "whole \ud83d\ude42, cut \ud83d, \x00"

    assert call([cut], "cut", {}).result == "whole 🙂, cut \ufffd, \ufffd"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ad", {}, "unknown tool 'ad'; did you mean 'add'?"),
        ("add", {}, "argument 'a' is missing"),
        ("add", {"a": 1, "tag": []}, "there is no argument 'tag'; did you mean 'tags'?"),
        ("add", {"a": "one"}, "argument 'a' must be a whole number, not the string 'one'"),
        ("add", {"a": "1,000"}, "argument 'a' must be a whole number"),
        ("add", {"a": 1.5}, "argument 'a' must be a whole number, not the number 1.5"),
        ("add", {"a": True}, "argument 'a' must be a whole number, not true"),
        ("add", {"a": None}, "argument 'a' must be a whole number, not null"),
        ("add", {"a": 1, "b": float("nan")}, "argument 'b'"),
        ("add", {"a": 1, "tags": [1]}, "argument 'tags.0' must be a string, not the number 1"),
        ("add", [1, 2], "must be an object with named values, not a list"),
        ("add", "a=1", "must be an object with named values"),
        ("add", {"a": {1, 2}}, "not valid JSON"),
    ],
)
def test_errors_tell_the_model_what_to_change(name, arguments, message):
    session = Toolbox([add]).session()
    problems = session.validate(name, arguments)
    assert any(message in problem for problem in problems), problems
    done = asyncio.run(session.call(name, arguments))
    assert not done.ok and message in done.result
    assert done.error_kind == ("unknown_tool" if name != "add" else "invalid_arguments")
    if name == "add":
        assert "Use add(a: int" in done.result


def test_only_unambiguous_numeric_strings_are_converted():
    done = call([add], "add", {"a": " 12", "b": "1.5"})
    assert done.ok and done.result == "13.5"
    assert done.arguments == {"a": 12, "b": 1.5}
    assert call([add], "add", {"a": 2.0}).arguments == {"a": 2}
    echo = load_tools(["echo"])
    assert call(echo, "echo", {"text": "12"}).result == "12"
    assert call(echo, "echo", {"text": 12}).error_kind == "invalid_arguments"


def test_budget_counts_calls_that_ran():
    async def run():
        session = Toolbox([add], max_calls=2).session()
        assert session.remaining == 2
        await session.call("add", {})
        await session.call("nothing", {})
        assert session.remaining == 2
        both = await asyncio.gather(*(session.call("add", {"a": i}) for i in range(3)))
        assert [done.error_kind for done in both] == ["", "", "over_budget"]
        assert session.remaining == 0 and Toolbox([add]).session().remaining is None

    asyncio.run(run())


def test_time_limits_apply_to_sync_and_uncooperative_async_tools():
    async def run():
        session = Toolbox([hang, stubborn]).session()
        done = await asyncio.gather(*(session.call(name, {}) for name in ["hang", "stubborn"] * 40))
        assert {one.error_kind for one in done} == {"timeout"}
        assert "longer than 0.1 s" in done[0].result

    asyncio.run(run())


def test_a_hung_tool_does_not_keep_the_process_alive():
    script = (
        "import asyncio, time\n"
        "from midstream.tools import Toolbox, tool\n"
        "@tool(timeout_s=0.1)\n"
        "def hang() -> str:\n    time.sleep(60)\n    return ''\n"
        "print(asyncio.run(Toolbox([hang]).session().call('hang', {})).error_kind)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.strip() == "timeout"


def test_slow_sync_tools_run_concurrently_off_the_event_loop():
    running, most = 0, 0
    lock = threading.Lock()

    @tool
    def slow() -> str:
        """Slow."""
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.2)
        with lock:
            running -= 1
        return "done"

    async def run():
        session = Toolbox([slow]).session()
        return await asyncio.gather(*(session.call("slow", {}) for _ in range(100)))

    assert all(done.ok for done in asyncio.run(run()))
    assert most > 50


def test_a_plain_function_that_wraps_an_async_one_is_awaited():
    async def later(word: str) -> str:
        await asyncio.sleep(0)
        return word.upper()

    @tool
    def now(word: str) -> object:
        """Wrap."""
        return later(word)

    assert call([now], "now", {"word": "a"}).result == "A"


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), TimeoutError("mine"), Unprintable(), RecursionError()],
)
def test_any_exception_of_a_tool_fails_only_its_call(error):
    @tool
    def fail() -> str:
        """Fail."""
        raise error

    done = call([fail], "fail", {})
    assert (done.ok, done.error_kind) == (False, "raised")
    assert type(error).__name__ in done.result


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), TimeoutError("mine"), asyncio.CancelledError()])
def test_any_exception_of_an_async_tool_fails_only_its_call(error):
    @tool
    async def fail() -> str:
        """Fail."""
        raise error

    assert call([fail], "fail", {}).error_kind == "raised"


def test_odd_results_become_text_that_can_be_stored():
    class Broken:
        def __str__(self):
            raise ValueError("no text")

    @tool
    def odd(what: int) -> object:
        """Odd."""
        return [None, {"a": [1, "\u00e9"]}, "a\x00b\ud800", Broken(), b"\xff"][what]

    results = [call([odd], "odd", {"what": what}) for what in range(5)]
    assert results[0].result == "None"
    assert results[1].result == '{"a": [1, "\u00e9"]}'
    assert results[2].result.encode() and "\x00" not in results[2].result
    assert results[3].error_kind == "raised"
    assert results[4].ok


def test_long_results_are_cut_visibly():
    done = call(load_tools(["echo"]), "echo", {"text": "x" * 5000}, max_result_chars=100)
    assert len(done.result) == 100
    assert done.result.endswith("[cut: 5000 characters in all]")


def test_cancelling_the_trajectory_cancels_the_tool():
    cancelled = []

    @tool
    async def wait() -> str:
        """Wait."""
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return ""

    async def run():
        task = asyncio.create_task(Toolbox([wait]).session().call("wait", {}))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    asyncio.run(run())
    assert cancelled == [True]


def test_wrong_toolboxes_are_refused():
    with pytest.raises(ConfigError):
        Toolbox([add], max_calls=-1)
    with pytest.raises(ConfigError):
        Toolbox([add], max_result_chars=10)
    with pytest.raises(ConfigError, match="two tools are named 'add'"):
        Toolbox([add, add])


@pytest.mark.timeout(120)
def test_enormous_calls_are_refused_at_once():
    named = call([add], "x" * 2_000_000, {})
    assert named.error_kind == "unknown_tool" and len(named.tool) == 64 and len(named.result) < 200
    crowded = call([add], "add", {f"argument{i}" * 100: i for i in range(5000)})
    assert crowded.error_kind == "invalid_arguments" and "and 4996 more" in crowded.result
    assert len(crowded.result) < 1000
    deep = {"a": []}
    for _ in range(100_000):
        deep = {"a": deep}
    assert call([add], "add", deep).error_kind == "invalid_arguments"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(name=st.sampled_from(["add", "search", "calculator", "echo", ""]) | st.text(max_size=9), arguments=JSON)
def test_no_call_written_by_a_model_raises(name, arguments):
    done = call([add, *load_tools(["search", "calculator", "echo"])], name, arguments)
    assert done.ok == (done.error_kind == "")
    done.result.encode()
