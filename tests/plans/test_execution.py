"""What runs when: dependencies, joins, conditions, maps, loops, sub-plans, limits and policies."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import World, do, plan

from midstream.core.errors import RunError
from midstream.plans import (
    AgentExecutor,
    Choice,
    Context,
    NodeState,
    RunStatus,
    SchedulerState,
    ScoredPolicy,
    handler,
)


def add(name: str, a: Any, b: Any = 0, **fields: Any) -> dict[str, Any]:
    return {"id": name, "handler": "add", "args": {"a": a, "b": b}, **fields}


def test_outputs_flow_along_references(tmp_path: Path) -> None:
    made = plan(add("x", {"$ref": "input.start"}, 1), add("y", {"$ref": "x"}, {"$ref": "x"}), output={"$ref": "y"})
    result = World().run(tmp_path, made, input={"start": 20})
    assert (result.status, result.output) == (RunStatus.SUCCEEDED, 42)


def test_a_node_starts_when_its_own_parents_are_done_not_when_a_whole_layer_is(tmp_path: Path) -> None:
    """The trap of supersteps: an unrelated slow node holds up what follows a fast one."""
    order: list[str] = []
    released = asyncio.Event()

    @handler("slow", effects="none")
    async def slow() -> None:
        await released.wait()
        order.append("slow")

    @handler("after", effects="none")
    async def after() -> None:
        order.append("after fast")
        released.set()

    World().run(
        tmp_path,
        plan({"id": "s", "handler": "slow"}, add("fast", 1), {"id": "a", "handler": "after", "after": ["fast"]}),
        slow,
        after,
    )
    assert order == ["after fast", "slow"]


def test_outcomes_belong_to_nodes_in_whatever_order_they_end(tmp_path: Path, world: World) -> None:
    """The trap of recovery by position: each process is interrupted with other nodes under way, and none takes the
    outcome of another for its own."""
    held: set[str] = set()
    begun: set[str] = set()

    @handler("held", effects="idempotent")
    async def work(name: str, before: str = "") -> str:
        begun.add(name)
        if name in held:
            await asyncio.Event().wait()
        return f"{before} {world.act(name)}".strip()

    def node(name: str, before: str = "") -> dict[str, Any]:
        return {
            "id": name,
            "handler": "held",
            "args": {"name": name, **({"before": {"$ref": before}} if before else {})},
        }

    made = plan(node("a1"), node("a2", "a1"), node("b1"), node("b2", "b1"))

    async def interrupted(executor: AgentExecutor) -> None:
        running = asyncio.create_task(executor.run(made, uid="r"))
        async with asyncio.timeout(20):
            while not held <= begun:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    for names in ({"a1", "b2"}, {"a2", "b2"}, {"a2"}):
        held, begun = names, set()
        world.using(tmp_path, interrupted, work)
    held = set()
    result = world.using(tmp_path, lambda executor: executor.resume("r"), work)
    assert result.output == {"a2": "a1! a2!", "b2": "b1! b2!"}
    assert sorted(world.did) == ["a1", "a2", "b1", "b2"]


@pytest.mark.parametrize(
    ("join", "failing", "runs"),
    [
        ("all", (), True),
        ("all", ("a",), False),
        ("any", ("a", "b"), True),
        ("any", ("a", "b", "c"), False),
        (2, ("a",), True),
        (2, ("a", "b"), False),
        ("settled", ("a", "b", "c"), True),
    ],
)
def test_joins(tmp_path: Path, join: Any, failing: tuple[str, ...], runs: bool) -> None:
    world = World()
    for name in failing:
        world.fail(name, ValueError("no"))
    parents = [do(name, on_failure="continue") for name in "abc"]
    result = world.run(tmp_path, plan(*parents, do("end", "a", "b", "c", join=join), do("last", "end")))
    assert result.status is RunStatus.SUCCEEDED
    assert ("end" in world.did, "last" in world.did) == (runs, runs)


def test_a_join_that_is_met_can_cancel_what_nobody_else_waits_for(tmp_path: Path) -> None:
    world = World()
    made = plan(
        do("quick"), do("queued"), do("end", "quick", "queued", join="any", cancel_rest=True), max_concurrency=1
    )
    assert world.run(tmp_path, made).status is RunStatus.SUCCEEDED
    assert world.did == ["quick", "end"]


def test_conditions_choose_branches_and_skips_spread(tmp_path: Path) -> None:
    world = World()
    made = plan(
        add("n", {"$ref": "input.n"}),
        do("small", when={"lt": [{"$ref": "n"}, 10]}),
        do("large", when={"not": {"lt": [{"$ref": "n"}, 10]}}),
        do("after_small", "small"),
        do("either", "after_small", "large", join="any"),
        do("told", when={"and": [{"skipped": "after_small"}, {"succeeded": "large"}]}, join="settled"),
    )
    assert world.run(tmp_path, made, input={"n": 30}).status is RunStatus.SUCCEEDED
    assert sorted(world.did) == ["either", "large", "told"]


def test_a_map_runs_each_element_and_keeps_their_order(tmp_path: Path) -> None:
    made = plan(
        add("m", {"$ref": "item.n"}, {"$ref": "index"}, map={"over": {"$ref": "input.rows"}, "concurrency": 2}),
        output={"$ref": "m"},
    )
    assert World().run(tmp_path, made, input={"rows": [{"n": n * 10} for n in range(7)]}).output == [
        0, 11, 22, 33, 44, 55, 66,
    ]  # fmt: skip
    (tmp_path / "plans.db").unlink()
    assert World().run(tmp_path, made, input={"rows": []}).output == []


def test_a_map_tolerates_as_many_failures_as_it_says(tmp_path: Path) -> None:
    world = World()
    world.fail("2", ValueError("no"))
    node = {"id": "m", "handler": "do", "args": {"name": {"$ref": "item"}}, "retry": {"attempts": 1}}
    made = plan(node | {"map": {"over": ["1", "2", "3"], "min_succeeded": 2}}, output={"$ref": "m"})
    assert world.run(tmp_path, made).output == ["1!", None, "3!"]
    world.fail("2", ValueError("no"))
    made = plan(node | {"map": {"over": ["1", "2", "3"]}})
    assert world.run(tmp_path, made).status is RunStatus.FAILED


def test_a_loop_runs_until_its_condition_holds_and_hands_on_its_output(tmp_path: Path) -> None:
    loop = {"max_rounds": 10, "until": {"ge": [{"$ref": "output"}, {"$ref": "input.goal"}]}}
    made = plan(
        add("l", {"$ref": "previous", "default": 1}, {"$ref": "previous", "default": 1}, loop=loop),
        output={"$ref": "l"},
    )
    assert World().run(tmp_path, made, input={"goal": 60}).output == 64


def test_a_loop_has_bounds_and_notices_that_it_stalls(tmp_path: Path) -> None:
    never = {"max_rounds": 4, "until": {"lt": [{"$ref": "output"}, 0]}}
    counting = add("l", {"$ref": "round"}, loop=never)
    assert "did not hold within 4 rounds" in World().run(tmp_path, plan(counting)).error
    accepted = World().run(tmp_path, plan(counting | {"loop": never | {"on_limit": "accept"}}, output={"$ref": "l"}))
    assert accepted.output == 4

    @handler("ping_pong", effects="none")
    async def ping_pong(last: str | None) -> str:
        return "pong" if last == "ping" else "ping"

    node = {"id": "l", "handler": "ping_pong", "args": {"last": {"$ref": "previous"}}}
    loop = {"max_rounds": 1000, "until": {"eq": [{"$ref": "output"}, "done"]}, "stall_after": 6}
    result = World().run(tmp_path, plan(node | {"loop": loop}), ping_pong)
    assert result.error == "NoProgress: 6 rounds in a row returned nothing new"


def test_sub_plans_see_their_input_only_and_nest_in_maps_and_loops(tmp_path: Path) -> None:
    inner = plan(add("x", {"$ref": "input.n"}, 1), add("y", {"$ref": "x"}, {"$ref": "x"}), output={"$ref": "y"})
    made = plan(
        {"id": "each", "plan": inner, "args": {"n": {"$ref": "item"}}, "map": {"over": [1, 2]}},
        {
            "id": "again",
            "plan": inner,
            "args": {"n": {"$ref": "previous", "default": 0}},
            "loop": {"max_rounds": 3},
            "after": ["each"],
        },
    )
    assert World().run(tmp_path, made).output == {"again": 14}
    view = World().using(tmp_path, lambda executor: status_of_newest(executor))
    assert view.nodes["each[1]/y"].output == "6" and view.nodes["again#3/y"].state is NodeState.SUCCEEDED


async def status_of_newest(executor: Any) -> Any:
    from midstream.plans import views

    return await executor.status(executor.database.read(views.runs)[0].uid)


def test_the_declared_input_is_checked(tmp_path: Path) -> None:
    made = plan(add("x", {"$ref": "input.n"}), inputs={"n": {"type": "integer"}})
    with pytest.raises(RunError, match=r"input 'n' of plan 'plan'.*'three' is not of type 'integer'"):
        World().run(tmp_path, made, input={"n": "three"})
    with pytest.raises(RunError, match="must have exactly these names: n"):
        World().run(tmp_path, made, input={})
    assert World().run(tmp_path, made, input={"n": 3}).output == {"x": 3}


def most_at_once(tmp_path: Path, count: int, *more: Any, **settings: Any) -> int:
    running, most = 0, 0

    @handler("busy", effects="none")
    async def busy() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    nodes = [{"id": f"n{at}", "handler": "busy", **(more[0] if more else {})} for at in range(count)]
    fields = more[1] if len(more) > 1 else {}
    assert World().run(tmp_path, plan(*nodes, **fields), busy, **settings).status is RunStatus.SUCCEEDED
    return most


def test_concurrency_is_limited_by_executor_plan_and_resources(tmp_path: Path) -> None:
    assert most_at_once(tmp_path, 8, max_concurrency=3) == 3
    assert most_at_once(tmp_path, 8, {}, {"max_concurrency": 2}) == 2
    assert most_at_once(tmp_path, 8, {"resources": {"browser": 2}}, resources={"browser": 5}) == 2
    assert most_at_once(tmp_path, 8, {"resources": {"browser": 1}}, {"limits": {"browser": 3}}) == 3


def test_many_plans_at_once_share_the_places_and_all_end(tmp_path: Path) -> None:
    async def main(executor: Any) -> list[Any]:
        chain = plan(add("a", 1), add("b", {"$ref": "a"}, resources={"tool": 1}), add("c", {"$ref": "b"}, 1))
        return await asyncio.gather(*(executor.run(chain) for _ in range(60)))

    results = World().using(tmp_path, main, max_concurrency=4, resources={"tool": 2})
    assert [result.output for result in results] == [{"c": 2}] * 60


def test_a_sync_handler_blocks_no_other(tmp_path: Path) -> None:
    import threading

    other_ran = threading.Event()

    @handler("blocking", effects="none")
    def blocking() -> bool:
        return other_ran.wait(30)

    @handler("other", effects="none")
    async def other() -> None:
        other_ran.set()

    made = plan({"id": "a", "handler": "blocking"}, {"id": "b", "handler": "other"}, output={"$ref": "a"})
    assert World().run(tmp_path, made, blocking, other).output is True


def test_a_policy_chooses_and_its_masked_choice_is_recorded(tmp_path: Path) -> None:
    world = World()
    policy = ScoredPolicy(lambda node, state: {"a": 0.0, "b": 50.0, "c": 100.0}[node.path], name="taste")
    made = plan(do("a"), do("b"), do("c", resources={"gate": 1}), do("d", resources={"gate": 1}), limits={"gate": 1})
    made["nodes"].pop()

    async def main(executor: Any) -> list[Any]:
        await executor.run(made, uid="r")
        return [event async for event in executor.events("r") if event.kind == "choice"]

    choices = world.using(tmp_path, main, policy=policy, max_concurrency=1)
    assert world.did == ["c", "b", "a"]
    assert [event.path for event in choices] == ["c", "b", "a"]
    for event in choices:
        scores = [{"a": 0.0, "b": 50.0, "c": 100.0}[path] for path in event.data["ready"]]
        total = sum(math.exp(score - max(scores)) for score in scores)
        chosen = event.data["index"]
        assert event.data["log_prob"] == pytest.approx(scores[chosen] - max(scores) - math.log(total))


def test_what_is_not_feasible_has_no_probability(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[bool]]] = []

    class Watching:
        name = "watching"

        async def choose(self, state: SchedulerState) -> Choice:
            seen.append(([node.path for node in state.ready], list(state.feasible)))
            return Choice(state.feasible.index(True), 0.0)

    gated = [{"id": name, "handler": "nap", "resources": {"gate": 1}} for name in "ab"]

    @handler("nap", effects="none")
    async def nap(ctx: Context) -> None:
        await asyncio.sleep(0.01)

    World().run(tmp_path, plan(*gated, {"id": "c", "handler": "nap"}), nap, policy=Watching(), resources={"gate": 1})
    assert (["b", "c"], [False, True]) in seen


def test_a_large_plan_runs_in_order_and_its_cost_is_linear(tmp_path: Path) -> None:
    size = 300
    nodes = [add("n0", 0)] + [add(f"n{at}", {"$ref": f"n{at - 1}"}, 1) for at in range(1, size)]

    async def main(executor: Any) -> tuple[Any, int]:
        result = await executor.run(plan(*nodes, output={"$ref": f"n{size - 1}"}), uid="r")
        return result.output, (await executor.status("r")).run.seq

    output, events = World().using(tmp_path, main)
    assert output == size - 1 and events <= 4 * size
