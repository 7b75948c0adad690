"""Retries, fallbacks, budgets, approval, the circuit breaker, statistics, recording and replay of tool calls."""

import asyncio

import httpx
import pytest
from tests.tools.toolboxes import failing, run, status, toolbox

from midstream.core.errors import ToolUnavailable
from midstream.core.toolsets import ToolResult, ToolSpec
from midstream.tools import ToolError, ToolOutage, TransientToolError, load_tools, tool


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
def test_only_repeatable_temporary_failures_are_retried(error, idempotent, attempts):
    flaky, calls = failing(error, retries=2, idempotent=idempotent)
    (done,) = run(toolbox(flaky, outage="report"), ("flaky", {"query": "a"}))
    assert not done.ok and len(calls) == done.attempts == attempts


def test_a_retry_that_succeeds_is_one_call():
    flaky, calls = failing(TransientToolError("busy"), times=2, retries=2)
    (done, late) = run(toolbox(flaky, max_calls=1), ("flaky", {"query": "a"}), ("flaky", {"query": "b"}))
    assert (done.result, done.attempts, len(calls)) == ("found a", 3, 3)
    assert late.error_kind == "over_budget"


def test_waits_grow_with_each_retry(clock):
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


def test_a_timeout_is_retried_only_for_idempotent_tools():
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


def test_the_first_working_fallback_answers():
    @tool
    def archive(question: str) -> str:
        """Search the archive."""
        return f"archive: {question}"

    flaky, _ = failing(ToolError("no result"), fallback=["missing", "multiply", "archive", "echo"])
    box = toolbox(flaky, archive, *load_tools(["echo", "multiply"]))
    (done,) = run(box, ("flaky", {"query": "tide"}))
    assert (done.ok, done.result, done.answered_by, done.tool) == (True, "archive: tide", "archive", "flaky")


def test_without_a_working_fallback_the_first_failure_is_returned():
    @tool
    def also(query: str) -> str:
        """Fails too."""
        raise ToolError("also nothing")

    flaky, _ = failing(ToolError("no result"), fallback=["also"])
    (done,) = run(toolbox(flaky, also), ("flaky", {"query": "a"}))
    assert (done.result, done.error_kind, done.attempts) == ("Error: no result", "raised", 2)


def test_an_outage_raises_instead_of_returning_a_result():
    flaky, _ = failing(ConnectionError("refused"))
    with pytest.raises(ToolOutage, match="'flaky' is unavailable: ConnectionError: refused") as raised:
        run(toolbox(flaky), ("flaky", {"query": "a"}))
    assert raised.value.call.error_kind == "unavailable"
    (told,) = run(toolbox(flaky, outage="report"), ("flaky", {"query": "a"}))
    assert told.result == "Error: ConnectionError: refused"


def test_a_fallback_prevents_an_outage():
    flaky, _ = failing(ConnectionError("refused"), fallback=["echo"])
    (done,) = run(toolbox(flaky, *load_tools(["echo"])), ("flaky", {"query": "a"}))
    assert done.ok and done.answered_by == "echo"


def test_a_call_of_an_unknown_tool_goes_to_the_default_tool():
    box = toolbox(*load_tools(["echo", "calculator"]), default_tool="echo")
    one, many = run(box, ("weather", {"city": "Lima"}), ("weather", {"city": "Lima", "day": 2}))
    assert (one.ok, one.tool, one.answered_by, one.result) == (True, "weather", "echo", "Lima")
    assert many.result == '{"city": "Lima", "day": 2}'


def test_wrong_arguments_are_free_a_limited_number_of_times():
    box = toolbox(*load_tools(["multiply"]), max_calls=2, max_invalid=2)
    wrong = ("multiply", {"a": 1})
    first, _, third, good, over = run(
        box, wrong, wrong, wrong, ("multiply", {"a": 2, "b": 3}), ("multiply", {"a": 1, "b": 1})
    )
    assert first.error_kind == third.error_kind == "invalid_arguments"
    assert "Use multiply(a: float, b: float)" in first.result
    assert "wrong 3 times in a row, so this call counts" in third.result
    assert good.result == "6" and over.error_kind == "over_budget"


def test_budgets_limit_calls_cost_and_seconds():
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


def test_concurrent_calls_share_the_budget():
    box = toolbox(*load_tools(["echo"]), max_calls=2)

    async def scenario():
        session = box.session()
        return await asyncio.gather(*(session.call("echo", {"text": "a"}) for _ in range(5)))

    assert sorted(one.ok for one in asyncio.run(scenario())) == [False, False, False, True, True]


def test_a_call_that_needs_approval_runs_only_if_approved():
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


def test_timeouts_of_one_trajectory_do_not_pause_a_tool_for_others():
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


def test_settings_of_a_missing_tool_are_reported(caplog):
    run(toolbox(*load_tools(["echo"]), budgets={"serch": {"calls": 1}}), ("echo", {"text": "a"}))
    assert "name the tool 'serch', which is not there" in caplog.text


def test_policies_apply_to_every_toolset():
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


@pytest.mark.parametrize("succeeds", ["", "second"])
@pytest.mark.parametrize(("name", "calls"), [("first", {"": 3, "second": 2}), ("nothing", {"": 3, "second": 2})])
def test_a_restored_call_uses_as_much_as_it_did(succeeds, name, calls):
    def of(name, **policy):
        @tool(name=name, **policy)
        def act(text: str) -> str:
            """Act."""
            if name != succeeds:
                raise ToolError("no")
            return "done"

        return act

    budgets = {each: {"calls": 9} for each in ("first", "second", "third")}
    tools = of("first", fallback=("second", "third")), of("second"), of("third")
    box = toolbox(*tools, max_calls=9, default_tool="first", budgets=budgets)

    async def scenario():
        session, restored = box.session(), box.session()
        made = await session.call(name, {"text": "x"})
        await restored.restore(made)
        for each in (session, restored):
            left = [each.remaining, *(each._budget._of(tool.name).calls for tool in tools)]
            assert left == [9 - calls[succeeds], 1, 1, calls[succeeds] - 2]

    asyncio.run(scenario())
