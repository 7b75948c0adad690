"""Retries, fallbacks, budgets, approval, the circuit breaker, statistics, recording and replay of tool calls."""

import asyncio
import datetime
import json
from contextlib import AsyncExitStack

import httpx
import pytest

from midstream.core.errors import ConfigError, ToolUnavailable
from midstream.core.toolsets import ToolContent, ToolResult, ToolSpec
from midstream.tools import Toolbox, ToolError, ToolOutage, ToolUseConfig, TransientToolError, load_tools, tool
from midstream.tools.policies import RecordedCalls
from midstream.tools.toolbox import ToolsetFactory
from midstream.tools.toolset import FunctionToolset


def toolbox(*tools, **settings):
    options = {key: settings.pop(key) for key in ("max_calls", "approve") if key in settings}
    return Toolbox(tools, use=ToolUseConfig.model_validate(settings), **options)


def run(box, *calls):
    async def all_of_them():
        session = box.session()
        return [await session.call(name, arguments) for name, arguments in calls]

    return asyncio.run(all_of_them())


def failing(error, times=100, **policy):
    """A tool that raises `error` so many times, then answers."""
    calls = []

    @tool(name="flaky", backoff_s=0, **policy)
    def flaky(query: str) -> str:
        """Look something up."""
        calls.append(query)
        if len(calls) <= times:
            raise error
        return f"found {query}"

    return flaky, calls


def status(code):
    request = httpx.Request("GET", "http://127.0.0.1/")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))


@pytest.mark.parametrize(
    ("error", "idempotent", "attempts"),
    [
        (TransientToolError("busy"), False, 3),
        (ToolUnavailable("down"), True, 3),
        (ConnectionError("reset"), True, 3),
        (httpx.ConnectError("refused"), True, 3),
        (status(503), True, 3),
        (ConnectionError("reset"), False, 1),
        (ToolError("no result"), True, 1),
        (ValueError("bug"), True, 1),
        (status(404), True, 1),
    ],
)
def test_only_what_may_succeed_and_may_be_repeated_is_retried(error, idempotent, attempts):
    flaky, calls = failing(error, retries=2, idempotent=idempotent)
    (done,) = run(toolbox(flaky, outage="report"), ("flaky", {"query": "a"}))
    assert not done.ok and len(calls) == done.attempts == attempts


def test_a_retry_that_succeeds_is_one_call():
    flaky, calls = failing(TransientToolError("busy"), times=2, retries=2)
    (done, late) = run(toolbox(flaky, max_calls=1), ("flaky", {"query": "a"}), ("flaky", {"query": "b"}))
    assert (done.result, done.attempts, len(calls)) == ("found a", 3, 3)
    assert late.error_kind == "over_budget"


def test_retries_wait_longer_each_time(clock):
    flaky, calls = failing(TransientToolError("busy"), times=1)
    box = toolbox(flaky, policies={"flaky": {"retries": 1, "backoff_s": 100.0, "max_backoff_s": 100.0}})

    async def scenario():
        waiting = asyncio.ensure_future(box.session().call("flaky", {"query": "a"}))
        while not calls or waiting.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert not waiting.done() and len(calls) == 1
        clock.advance(100)
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(scenario()).attempts == 2


def test_a_timeout_is_repeated_only_where_that_does_no_harm():
    attempts = []

    @tool(timeout_s=0.05, retries=1, backoff_s=0)
    async def slow(name: str) -> str:
        """Slow."""
        attempts.append(name)
        await asyncio.sleep(5)
        return name

    (once,) = run(toolbox(slow), ("slow", {"name": "a"}))
    assert once.error_kind == "timeout" and attempts == ["a"]
    run(toolbox(slow, policies={"slow": {"idempotent": True}}), ("slow", {"name": "b"}))
    assert attempts == ["a", "b", "b"]


def test_the_fallback_chain_answers_with_the_first_that_can():
    @tool
    def archive(question: str) -> str:
        """Search the archive."""
        return f"archive: {question}"

    flaky, _ = failing(ToolError("no result"), fallback=["missing", "multiply", "archive", "echo"])
    box = toolbox(flaky, archive, *load_tools(["echo", "multiply"]))
    (done,) = run(box, ("flaky", {"query": "tide"}))
    assert (done.ok, done.result, done.answered_by, done.tool) == (True, "archive: tide", "archive", "flaky")


def test_without_a_fallback_that_works_the_first_failure_stands():
    @tool
    def also(query: str) -> str:
        """Fails too."""
        raise ToolError("also nothing")

    flaky, _ = failing(ToolError("no result"), fallback=["also"])
    (done,) = run(toolbox(flaky, also), ("flaky", {"query": "a"}))
    assert (done.result, done.error_kind, done.attempts) == ("Error: no result", "raised", 2)


def test_an_outage_is_no_result_to_train_on():
    flaky, _ = failing(ConnectionError("refused"))
    with pytest.raises(ToolOutage, match="'flaky' is unavailable: ConnectionError: refused") as raised:
        run(toolbox(flaky), ("flaky", {"query": "a"}))
    assert raised.value.call.error_kind == "unavailable"
    (told,) = run(toolbox(flaky, outage="report"), ("flaky", {"query": "a"}))
    assert told.result == "Error: ConnectionError: refused"


def test_a_fallback_saves_a_call_from_an_outage():
    flaky, _ = failing(ConnectionError("refused"), fallback=["echo"])
    (done,) = run(toolbox(flaky, *load_tools(["echo"])), ("flaky", {"query": "a"}))
    assert done.ok and done.answered_by == "echo"


def test_a_wrong_name_goes_to_the_default_tool():
    box = toolbox(*load_tools(["echo", "calculator"]), default_tool="echo")
    one, many = run(box, ("weather", {"city": "Lima"}), ("weather", {"city": "Lima", "day": 2}))
    assert (one.ok, one.tool, one.answered_by, one.result) == (True, "weather", "echo", "Lima")
    assert many.result == '{"city": "Lima", "day": 2}'


def test_wrong_arguments_are_free_only_so_often():
    box = toolbox(*load_tools(["multiply"]), max_calls=2, max_invalid=2)
    wrong = ("multiply", {"a": 1})
    first, _, third, good, over = run(
        box, wrong, wrong, wrong, ("multiply", {"a": 2, "b": 3}), ("multiply", {"a": 1, "b": 1})
    )
    assert first.error_kind == third.error_kind == "invalid_arguments"
    assert "Use multiply(a: float, b: float)" in first.result
    assert "wrong 3 times in a row, so this call counts" in third.result
    assert good.result == "6" and over.error_kind == "over_budget"


def test_budgets_of_calls_cost_and_seconds():
    @tool(cost=0.4)
    def paid(query: str) -> str:
        """Costs money."""
        return query

    @tool
    async def slow(query: str) -> str:
        """Takes a while."""
        await asyncio.sleep(0.02)
        return query

    call = ("paid", {"query": "a"})
    done = run(toolbox(paid, budget={"cost": 1.0}), call, call, call)
    assert [one.ok for one in done] == [True, True, False]
    assert "the call costs 0.4, and 0.2 is left of 1" in done[2].result
    box = toolbox(paid, slow, budgets={"paid": {"calls": 1}, "slow": {"seconds": 0.01}})
    slower = ("slow", {"query": "a"})
    assert [one.error_kind for one in run(box, call, call, slower, slower)] == ["", "over_budget", "", "over_budget"]


def test_calls_at_the_same_time_share_the_budget():
    box = toolbox(*load_tools(["echo"]), max_calls=2)

    async def scenario():
        session = box.session()
        return await asyncio.gather(*(session.call("echo", {"text": "a"}) for _ in range(5)))

    assert sorted(one.ok for one in asyncio.run(scenario())) == [False, False, False, True, True]


def test_approval():
    asked = []

    @tool(approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        return "paid"

    async def approve(spec, arguments):
        asked.append((spec.name, arguments["amount"]))
        return arguments["amount"] < 10

    assert run(toolbox(pay), ("pay", {"amount": 1}))[0].error_kind == "refused"
    small, large = run(toolbox(pay, approve=approve), ("pay", {"amount": 1}), ("pay", {"amount": 100}))
    assert small.ok and large.error_kind == "refused" and asked == [("pay", 1), ("pay", 100)]


def test_the_breaker_pauses_a_tool_that_is_down_and_probes_it(clock):
    flaky, calls = failing(ConnectionError("refused"), times=3)
    box = toolbox(flaky, outage="report", breaker={"failures": 3, "open_s": 10.0})
    call = ("flaky", {"query": "a"})
    assert "paused" in run(box, call, call, call, call)[3].result
    assert len(calls) == 3 and box.breakers["flaky"].open
    clock.advance(11)
    assert [one.ok for one in run(box, call, call)] == [True, True]


def test_timeouts_of_one_trajectory_do_not_pause_a_tool_for_the_others():
    @tool(timeout_s=0.02)
    async def slow(n: int) -> str:
        """Wait."""
        await asyncio.sleep(n)
        return "ok"

    box = toolbox(slow, outage="report", breaker={"failures": 3})
    assert [one.error_kind for one in run(box, *[("slow", {"n": 5})] * 4)] == ["timeout"] * 4
    assert run(box, ("slow", {"n": 0}))[0].ok
    for _ in range(3):  # trajectories
        run(box, ("slow", {"n": 5}))
    assert "paused" in run(box, ("slow", {"n": 0}))[0].result


def test_the_breaker_ignores_errors_of_the_caller():
    flaky, calls = failing(ToolError("no result"))
    run(toolbox(flaky, breaker={"failures": 1}), *[("flaky", {"query": "a"})] * 4)
    assert len(calls) == 4


def test_statistics_are_over_all_trajectories():
    flaky, _ = failing(ConnectionError("refused"), times=1)
    box = toolbox(flaky, outage="report")
    run(box, ("flaky", {"query": "a"}))
    run(box, ("flaky", {"query": "a"}))
    seen = box.statistics["flaky"]
    assert (seen.attempts, seen.availability, seen.success) == (2, 0.5, 0.5)
    assert seen.latency_s is not None and seen.latency_s >= 0


def test_a_recording_answers_without_the_tools(tmp_path):
    path = tmp_path / "calls.jsonl"
    counted = []

    @tool
    def count(step: int) -> str:
        """Count."""
        counted.append(step)
        if step < 0:
            raise ToolError("negative")
        return f"{len(counted)}"

    calls = [("count", {"step": 1}), ("count", {"step": 1}), ("count", {"step": -1})]
    recorded = run(toolbox(count, record=str(path)), *calls)
    replayed = run(toolbox(count, replay=str(path)), *calls, ("count", {"step": 1}))
    assert len(counted) == 3
    assert [one.result for one in replayed[:3]] == [one.result for one in recorded] == ["1", "2", "Error: negative"]
    assert replayed[3].result == "2"
    with pytest.raises(ToolOutage, match="holds no recording of count"):
        run(toolbox(count, replay=str(path)), ("count", {"step": 5}))
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 0]


@pytest.mark.parametrize("data", [{"day": datetime.date(2026, 1, 1)}, {"sets": {1}}, {("a", 1): 2}])
def test_a_result_that_json_cannot_hold_is_recorded_as_text(tmp_path, data):
    path = str(tmp_path / "calls.jsonl")

    class Today(FunctionToolset):
        async def call(self, name, arguments):
            return ToolResult((ToolContent(kind="data", text="some", data=data),))

    @tool
    def today() -> str:
        """Today."""
        return ""

    def answers(**settings):
        factory = ToolsetFactory(lambda: Today([today]), (today,))

        async def scenario():
            async with AsyncExitStack() as resources:
                box = Toolbox((), toolsets=[factory], use=ToolUseConfig.model_validate(settings))
                session = box.session()
                await session.open(resources)
                return await session.run("today", {})

        return asyncio.run(scenario())[1].parts[0]

    assert answers(record=path).data == data
    replayed = answers(replay=path)
    assert replayed.text == "some" and json.loads(json.dumps(replayed.data)) == replayed.data


def test_what_could_not_be_written_is_not_counted_as_recorded(tmp_path):
    recording = RecordedCalls(tmp_path / "missing" / "calls.jsonl", replay=False)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            recording.add(("a", "{}", 0), ToolResult.of("b"))
    recording.path.parent.mkdir()
    recording.add(("a", "{}", 0), ToolResult.of("b"))
    assert len(recording.path.read_text().splitlines()) == 1


def test_a_file_that_is_no_recording_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="record one first"):
        toolbox(replay=str(tmp_path / "none.jsonl"))
    (tmp_path / "other.jsonl").write_text('{"tool": "a"}\n')
    with pytest.raises(ConfigError, match="line 1: not a recorded call"):
        toolbox(replay=str(tmp_path / "other.jsonl"))


def test_settings_of_a_tool_that_is_not_there_are_reported(caplog):
    run(toolbox(*load_tools(["echo"]), budgets={"serch": {"calls": 1}}), ("echo", {"text": "a"}))
    assert "name the tool 'serch', which is not there" in caplog.text


def test_policies_hold_for_every_toolset():
    class Remote:
        calls = 0

        async def open(self): ...

        async def list(self):
            text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
            return [ToolSpec(name="remote", parameters=text)]

        async def call(self, name, arguments):
            self.calls += 1
            if self.calls < 3:
                raise ConnectionError("gone")
            return ToolResult.of("here")

        async def close(self): ...

    async def scenario():
        policies = {"remote": {"retries": 2, "backoff_s": 0.0, "idempotent": True}}
        session = toolbox(policies=policies).session()
        await session.add(Remote())
        return await session.call("remote", {"text": "a"})

    done = asyncio.run(scenario())
    assert (done.ok, done.attempts) == (True, 3)


def test_cards_hold_what_a_planner_needs_to_know():
    @tool(
        returns="facts",
        limits=["knows countries only"],
        best_practices=["ask for one fact at a time"],
        examples=[{"query": "capital of Peru"}],
    )
    def lookup(query: str) -> str:
        """Look up a fact."""
        return query

    assert lookup.full_card.split("\n  ") == [
        "lookup(query: str) -> facts",
        "Look up a fact.",
        "Limit: knows countries only",
        "Best practice: ask for one fact at a time",
        'Example: {"tool": "lookup", "args": {"query": "capital of Peru"}}',
    ]


def test_selection_where_every_tool_is_always_shown():
    session = toolbox(
        *load_tools(["calculator", "echo"]), selection={"k": 1, "always": ["echo", "calculator"]}
    ).session()
    assert [one.name for one in session.shown("what is 6 times 7?")] == ["calculator", "echo"]


def test_the_prompt_shows_the_tools_that_fit_the_question():
    @tool
    def weather(city: str) -> str:
        """The weather forecast of a city."""
        return city

    @tool
    def translate(text: str) -> str:
        """Translate text into French."""
        return text

    selection = {"k": 1, "always": ["echo"]}
    session = toolbox(weather, translate, *load_tools(["calculator", "echo"]), selection=selection).session()
    assert [shown.name for shown in session.shown("What will the weather in Lima be?")] == ["weather", "echo"]
    assert [shown.name for shown in session.shown("Translate this text")] == ["translate", "echo"]
    assert len(session.shown()) == 4
