"""Retry, correction, fallback, replan and rollback: four remedies with separate budgets, in this order."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Correctable, Fatal, Permanent, Transient, World, do, plan

from midstream.plans import Context, NodeState, RunStatus, handler


@pytest.fixture
def world() -> World:
    return World()


def test_a_transient_failure_is_tried_again_as_often_as_the_node_says(tmp_path: Path, world: World) -> None:
    world.fail("a", Transient("busy"), ConnectionError("gone"))
    assert world.run(tmp_path, plan(do("a"))).status is RunStatus.SUCCEEDED
    world.fail("b", *[Transient("busy")] * 3)
    result = world.run(tmp_path, plan(do("b")))
    assert (result.status, result.error) == (RunStatus.FAILED, "Transient: busy")


def test_the_run_has_a_budget_of_retries_of_its_own(tmp_path: Path, world: World) -> None:
    world.fail("a", Transient("1"), Transient("2"))
    assert world.run(tmp_path, plan(do("a"), budgets={"retries": 1})).error == "Transient: 2"


def test_a_correctable_failure_comes_back_as_feedback_and_is_bounded(tmp_path: Path, world: World) -> None:
    world.fail("w", Correctable("no verb"), Correctable("too long"))
    node = {"id": "w", "handler": "write", "args": {"name": "w"}, "retry": {"attempts": 1, "corrections": 2}}
    assert world.run(tmp_path, plan(node)).output == {"w": ["no verb", "too long"]}
    world.fail("w", *[Correctable("no")] * 3)
    assert world.run(tmp_path, plan(node)).error == "Correctable: no"


def test_a_permanent_failure_moves_on_along_the_fallbacks(tmp_path: Path, world: World) -> None:
    world.fail("a", Permanent("no such flight"))
    world.fail("b", Transient("busy"), ValueError("broken"))
    node = do("a", fallback=[{"handler": "do", "args": {"name": "b"}}, {"handler": "do", "args": {"name": "c"}}])
    result = world.run(tmp_path, plan(node))
    assert (result.output, world.did) == ({"a": "c!"}, ["c"])
    world.fail("a", Permanent("no"))
    assert world.run(tmp_path, plan(node, budgets={"fallbacks": 0})).error == "Permanent: no"


def test_a_fatal_failure_uses_no_remedy(tmp_path: Path, world: World) -> None:
    world.fail("b", Fatal("account closed"))
    made = plan(
        do("a", undo=True), do("b", "a", fallback=[{"handler": "do", "args": {"name": "c"}}], on_failure="continue")
    )
    result = world.run(tmp_path, made)
    assert (result.status, result.error) == (RunStatus.ROLLED_BACK, "Fatal: account closed")
    assert world.did == ["a", "undo a"]


def test_what_succeeded_is_compensated_in_reverse_and_nothing_else(tmp_path: Path, world: World) -> None:
    world.fail("d", Permanent("full"))
    made = plan(do("a", undo=True), do("b", "a", undo=True), do("c", "b"), do("d", "c", undo=True), do("e", "d"))
    result = world.run(tmp_path, made)
    assert world.did == ["a", "b", "c", "undo b", "undo a"]
    assert result.status is RunStatus.ROLLED_BACK and result.remains == ("c",)


def test_a_recoverable_error_fires_no_rollback(tmp_path: Path, world: World) -> None:
    """The trap of compensation on any tool error."""
    world.fail("b", Transient("busy"))
    world.fail("c", Permanent("no"))
    made = plan(
        do("a", undo=True),
        do("b", "a", undo=True),
        do("c", "b", fallback=[{"handler": "do", "args": {"name": "d"}}]),
        do("e", "c", on_failure="continue"),
    )
    world.fail("e", Permanent("no"))
    assert world.run(tmp_path, made).status is RunStatus.SUCCEEDED
    assert world.did == ["a", "b", "d"]


def test_a_compensation_is_retried_and_one_that_fails_for_good_is_reported(tmp_path: Path, world: World) -> None:
    world.fail("d", Permanent("full"))
    world.fail("undo c", Transient("busy"))
    world.fail("undo b", Permanent("too late"))
    made = plan(do("a", undo=True), do("b", "a", undo=True), do("c", "b", undo=True), do("d", "c"))

    async def main(executor: Any) -> list[Any]:
        first = await executor.run(made, uid="r")
        return [first, await executor.rollback("r")]

    first, second = world.using(tmp_path, main)
    assert (first.status, first.remains) == (RunStatus.ROLLBACK_FAILED, ("b",))
    assert (second.status, second.remains) == (RunStatus.ROLLED_BACK, ())
    assert world.did == ["a", "b", "c", "undo c", "undo a", "undo b"]


def test_an_irreversible_node_is_reported(tmp_path: Path, world: World) -> None:
    world.fail("b", Permanent("no"))
    result = world.run(tmp_path, plan(do("a", undo=True), do("mail", "a", irreversible=True), do("b", "mail")))
    assert (result.status, result.remains) == (RunStatus.ROLLED_BACK, ("mail",))


def test_a_failed_sub_plan_is_undone_before_its_fallback_runs(tmp_path: Path, world: World) -> None:
    world.fail("y", Permanent("no"))
    inner = plan(do("x", undo=True), do("y", "x"))
    node = {"id": "s", "plan": inner, "fallback": [{"handler": "do", "args": {"name": "other"}}], "after": ["before"]}
    result = world.run(tmp_path, plan(do("before", undo=True), node))
    assert result.output == {"s": "other!"}
    assert world.did == ["before", "x", "undo x", "other"]


def test_a_sub_plan_that_succeeded_is_undone_node_by_node_or_by_its_own_compensation(
    tmp_path: Path, world: World
) -> None:
    inner = plan(do("x", undo=True), do("y", "x", undo=True))
    world.fail("z", Permanent("no"))
    world.run(tmp_path, plan({"id": "s", "plan": inner}, do("z", "s")))
    assert world.did == ["x", "y", "undo y", "undo x"]
    world.did.clear()
    world.fail("z", Permanent("no"))
    whole = {"id": "s", "plan": inner, "args": {"name": "all"}, "compensate": {"handler": "undo"}}
    world.run(tmp_path, plan(whole, do("z", "s")))
    assert world.did == ["x", "y", "undo all"]


def test_elements_and_rounds_are_compensated_one_by_one(tmp_path: Path, world: World) -> None:
    world.fail("z", Permanent("no"))
    node = {"id": "m", "handler": "do", "compensate": {"handler": "undo"}, "args": {"name": {"$ref": "item"}}}
    made = plan(node | {"map": {"over": ["1", "2"], "concurrency": 1}}, do("z", "m"))
    assert world.run(tmp_path, made).status is RunStatus.ROLLED_BACK
    assert world.did == ["1", "2", "undo 2", "undo 1"]


def test_stop_keeps_what_succeeded_and_the_run_can_be_tried_again(tmp_path: Path, world: World) -> None:
    world.fail("b", Permanent("no"))
    made = plan(do("a", undo=True), do("b", "a"), do("c", "b"), on_failure="stop")

    async def main(executor: Any) -> list[Any]:
        return [await executor.run(made, uid="r"), await executor.retry("r"), await executor.rollback("r")]

    first, second, third = world.using(tmp_path, main)
    assert (first.status, second.status) == (RunStatus.FAILED, RunStatus.SUCCEEDED)
    assert (third.status, third.remains) == (RunStatus.ROLLED_BACK, ("b", "c"))
    assert world.did == ["a", "b", "c", "undo a"]


def test_a_run_that_stops_has_failed_though_a_sub_plan_of_it_was_undone(tmp_path: Path, world: World) -> None:
    inner = plan(do("x", undo=True), do("y", "x"))
    made = plan(do("a", undo=True), {"id": "s", "plan": inner, "after": ["a"]}, on_failure="stop")

    async def main(executor: Any) -> Any:
        world.fail("y", Permanent("no"))
        first = await executor.run(made, uid="r")
        world.fail("y", Permanent("no"))
        world.fail("undo x", Permanent("never"))
        second = await executor.retry("r")
        return first, second, await executor.retry("r")

    first, second, third = world.using(tmp_path, main)
    assert first.status is second.status is third.status is RunStatus.FAILED
    assert world.did == ["a", "x", "undo x", "x"] and second.remains == ("a", "s/x")
    assert third.error == "Permanent: no"  # refused: what could not be undone must not be done again


def test_the_run_returns_to_a_savepoint_and_tries_again_within_its_budget(tmp_path: Path, world: World) -> None:
    world.fail("c", Permanent("1"))
    made = plan(do("a", undo=True, savepoint="base"), do("b", "a", undo=True), do("c", "b"), rollback_to="base")
    assert world.run(tmp_path, made).status is RunStatus.SUCCEEDED
    assert world.did == ["a", "b", "undo b", "b", "c"]
    world.did.clear()
    world.fail("c", Permanent("1"), Permanent("2"))
    assert world.run(tmp_path, made).status is RunStatus.ROLLED_BACK
    assert world.did == ["a", "b", "undo b", "b", "undo b", "undo a"]


def test_a_person_rolls_back_to_a_savepoint_and_goes_on_from_there(tmp_path: Path, world: World) -> None:
    made = plan(do("a", undo=True, savepoint="base"), do("b", "a", undo=True), output={"$ref": "b"})

    async def main(executor: Any) -> list[Any]:
        await executor.run(made, uid="r")
        back = await executor.rollback("r", "base")
        return [back, await executor.resume("r"), await executor.rollback("r", "nowhere")]

    back, again, refused = world.using(tmp_path, main)
    assert (back.status, again.status, refused.status) == (
        RunStatus.PAUSED, RunStatus.SUCCEEDED, RunStatus.SUCCEEDED,
    )  # fmt: skip
    assert world.did == ["a", "b", "undo b", "b"]


def test_a_new_key_follows_a_rollback_and_the_same_key_a_retry(tmp_path: Path, world: World) -> None:
    keys: list[str] = []

    @handler("keyed", effects="idempotent")
    async def keyed(ctx: Context) -> None:
        keys.append(ctx.key)
        if len(keys) in (1, 2):
            raise Transient("busy") if len(keys) == 1 else Permanent("no")

    node = {"id": "k", "handler": "keyed", "after": ["a"], "retry": {"first_s": 0}}
    made = plan(do("a", savepoint="base"), node, rollback_to="base")
    assert world.run(tmp_path, made, keyed).status is RunStatus.SUCCEEDED
    assert keys[0] == keys[1] != keys[2]


@handler("planner", effects="none")
async def planner(plan: dict[str, Any], failed: str, error: str, states: dict[str, str]) -> dict[str, Any]:
    assert error == "Permanent: no" and states["a"] == "succeeded"
    kept = [node for node in plan["nodes"] if node["id"] not in (failed, "end")]
    return {**plan, "nodes": [*kept, do("instead", "a"), do("end", "instead")]}


def test_a_new_plan_replaces_what_failed_and_keeps_what_is_done(tmp_path: Path, world: World) -> None:
    world.fail("b", Permanent("no"))
    made = plan(do("a"), do("b", "a"), do("end", "b"), replan={"handler": "planner"})

    async def main(executor: Any) -> Any:
        return await executor.run(made, uid="r"), await executor.status("r")

    result, view = world.using(tmp_path, main, planner)
    assert result.status is RunStatus.SUCCEEDED and world.did == ["a", "instead", "end"]
    assert view.run.revision == 1 and view.nodes["b"].state is NodeState.FAILED


@pytest.mark.parametrize("written", [None, "plan.yaml", [1]])
def test_only_data_is_taken_as_a_new_plan(
    tmp_path: Path, world: World, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("nodes: [{id: x, handler: do, args: {name: x}}]\n")

    @handler("bad", effects="none")
    async def bad() -> Any:
        return written

    world.fail("b", Permanent("no"))

    async def main(executor: Any) -> Any:
        result = await executor.run(plan(do("b"), replan={"handler": "bad"}), uid="r")
        return result, [event.data.get("refused", "") async for event in executor.events("r") if event.kind == "note"]

    result, notes = world.using(tmp_path, main, bad)
    assert (result.status, world.did) == (RunStatus.FAILED, [])
    assert all("must return a plan as a mapping" in note for note in notes) and notes


@pytest.mark.parametrize(
    ("written", "noted"),
    [
        ({"nodes": [do("a", handler="add")]}, "node 'a' is succeeded and cannot be changed"),
        ({"nodes": [do("x", "y")]}, "node 'x': it refers to 'y'"),
        ({"nodes": [do("a"), do("b", "a")], "replan": {"handler": "bad"}}, "this plan was tried before"),
        ({"nodes": "none"}, "is not valid"),
    ],
)
def test_a_bad_new_plan_is_refused_and_uses_the_budget(
    tmp_path: Path, world: World, written: dict[str, Any], noted: str
) -> None:
    @handler("bad", effects="none")
    async def bad() -> dict[str, Any]:
        return written

    world.fail("b", Permanent("no"))
    made = plan(do("a"), do("b", "a"), replan={"handler": "bad"})

    async def main(executor: Any) -> Any:
        result = await executor.run(made, uid="r")
        return result, [event.data.get("refused", "") async for event in executor.events("r") if event.kind == "note"]

    result, notes = world.using(tmp_path, main, bad)
    assert result.error == "Permanent: no" and result.status is RunStatus.FAILED
    assert len(notes) == 2 and all(noted in note for note in notes)


def test_a_revision_from_outside_changes_what_did_not_begin(tmp_path: Path, world: World) -> None:
    question = {"id": "q", "handler": "ask", "args": {"prompt": "?"}, "after": ["a"]}
    made, revised = plan(do("a"), question, do("b", "q")), plan(do("a"), question, do("c", "q"))

    async def main(executor: Any) -> Any:
        asked = (await executor.run(made, uid="r")).questions[0]
        await executor.revise("r", revised)
        await executor.answer("r", asked.id, "go")
        return await executor.resume("r")

    assert world.using(tmp_path, main).status is RunStatus.SUCCEEDED
    assert world.did == ["a", "c"]


@pytest.mark.parametrize(
    ("returned", "said"),
    [("text", "returned what it does not declare: Input should be a valid integer"), ({1, 2}, "does not declare")],
)
def test_a_result_of_the_wrong_type_fails_the_node(tmp_path: Path, world: World, returned: Any, said: str) -> None:
    @handler("wrong", effects="none")
    async def wrong() -> int:
        return returned

    result = world.run(tmp_path, plan({"id": "a", "handler": "wrong"}), wrong)
    assert result.status is RunStatus.FAILED and said in result.error


def test_a_result_that_json_cannot_hold_fails_the_node(tmp_path: Path, world: World) -> None:
    @handler("odd", effects="none")
    async def odd():
        return {1, 2}

    assert "it holds a set" in world.run(tmp_path, plan({"id": "a", "handler": "odd"}), odd).error


def test_a_handler_that_hangs_is_stopped_and_one_with_a_heartbeat_is_not(tmp_path: Path, world: World) -> None:
    @handler("hangs", effects="none")
    async def hangs() -> None:
        await asyncio.Event().wait()

    @handler("beats", effects="none")
    async def beats(ctx: Context) -> str:
        for _ in range(6):
            await asyncio.sleep(0.1)
            ctx.heartbeat()
        return "alive"

    once = {"attempts": 1}
    result = world.run(tmp_path, plan({"id": "h", "handler": "hangs", "timeout_s": 0.05, "retry": once}), hangs)
    assert "no result and no heartbeat within 0.05 s" in result.error
    assert world.run(tmp_path, plan({"id": "b", "handler": "beats", "timeout_s": 0.4}), beats).output == {"b": "alive"}


def test_what_handlers_spend_is_counted_against_the_budget(tmp_path: Path, world: World) -> None:
    @handler("call", effects="none")
    async def call(ctx: Context) -> None:
        ctx.spend(tokens=40, cost=0.1)

    nodes = [{"id": f"c{at}", "handler": "call"} for at in range(3)]
    assert world.run(tmp_path, plan(*nodes, budgets={"spend": {"tokens": 120}}), call).status is RunStatus.SUCCEEDED
    result = world.run(tmp_path, plan(*nodes, budgets={"spend": {"tokens": 100}}), call)
    assert result.error == "Fatal: the run used 120 of tokens, above its budget of 100"


def test_secrets_stay_out_of_errors(tmp_path: Path, world: World) -> None:
    world.fail("a", Permanent("postgresql://me:hunter2@host/db refused"))
    assert "hunter2" not in world.run(tmp_path, plan(do("a"))).error


_RETRIED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "map": (
        {
            "id": "m",
            "handler": "once",
            "args": {"name": {"$ref": "item"}},
            "map": {"over": ["x", "y", "z"], "concurrency": 1},
        },
        ["x", "y", "z"],
    ),
    "sub-plan": (
        {
            "id": "s",
            "plan": plan(do("x", handler="once"), do("y", "x", handler="once"), do("z", "y"), on_failure="stop"),
        },
        ["x", "y", "z"],
    ),
    "sub-plans in a map": (
        {
            "id": "m",
            "args": {"name": {"$ref": "item"}},
            "map": {"over": ["x", "y"]},
            "plan": plan({"id": "n", "handler": "once", "args": {"name": {"$ref": "input.name"}}}, on_failure="stop"),
        },
        ["x", "y"],
    ),
}


@pytest.mark.parametrize("shape", _RETRIED)
def test_another_try_repeats_nothing_that_succeeded(tmp_path: Path, world: World, shape: str) -> None:
    node, wanted = _RETRIED[shape]
    world.fail("y", Permanent("no"), Permanent("no"))
    made = plan(node, do("end", node["id"]), on_failure="stop")

    async def main(executor: Any) -> list[Any]:
        return [await executor.run(made, uid="r"), await executor.retry("r"), await executor.retry("r")]

    first, second, third = world.using(tmp_path, main)
    assert (first.status, second.status) == (RunStatus.FAILED, RunStatus.FAILED)
    assert third.status is RunStatus.SUCCEEDED and world.did == [*wanted, "end"]


def test_another_try_begins_with_the_sub_plan_and_not_with_its_fallback(tmp_path: Path, world: World) -> None:
    inner = plan(do("x", handler="once"), do("y", "x"), on_failure="stop")
    node = {"id": "s", "plan": inner, "fallback": [{"handler": "do", "args": {"name": "alt"}}]}
    world.fail("y", Permanent("no"))
    world.fail("alt", Permanent("no"))
    made = plan(node, on_failure="stop")
    assert world.using(tmp_path, lambda executor: executor.run(made, uid="r")).status is RunStatus.FAILED
    assert world.using(tmp_path, lambda executor: executor.retry("r")).output == {"s": {"y": "y!"}}
    assert world.did == ["x", "y"]


def test_another_try_that_is_cancelled_undoes_what_the_first_did(tmp_path: Path, world: World) -> None:
    world.fail("y", Permanent("no"), Permanent("no"))
    node = {"id": "m", "plan": plan(do("x", undo=True), do("y", "x"), on_failure="stop")}

    async def main(executor: Any) -> Any:
        await executor.run(plan(node, on_failure="stop"), uid="r")
        await executor.retry("r")
        return await executor.rollback("r")

    assert world.using(tmp_path, main).status is RunStatus.ROLLED_BACK
    assert world.did == ["x", "undo x"]


def test_another_try_goes_on_with_the_round_that_failed(tmp_path: Path, world: World) -> None:
    rounds: list[int] = []
    world.fail("flaky", Permanent("no"))

    @handler("round", effects="once")
    async def round_(round: int) -> int:
        if round == 2 and world.failures["flaky"]:
            world.act("flaky")
        rounds.append(round)
        return round

    node = {"id": "l", "handler": "round", "args": {"round": {"$ref": "round"}}, "loop": {"max_rounds": 3}}

    async def main(executor: Any) -> Any:
        await executor.run(plan(node, on_failure="stop"), uid="r")
        return await executor.retry("r")

    assert world.using(tmp_path, main, round_).status is RunStatus.SUCCEEDED
    assert rounds == [1, 2, 3]


def test_another_try_remembers_the_steps_of_the_node_that_failed(tmp_path: Path, world: World) -> None:
    world.fail("ship", Permanent("no"))

    @handler("order", effects="steps")
    async def order(ctx: Context) -> str:
        await ctx.step("charge", lambda: world.act("charge"))
        return world.act("ship")

    async def main(executor: Any) -> Any:
        await executor.run(plan({"id": "o", "handler": "order"}, on_failure="stop"), uid="r")
        return await executor.retry("r")

    assert world.using(tmp_path, main, order).output == {"o": "ship!"}
    assert world.did == ["charge", "ship"]


def test_another_try_asks_again_for_an_approval_that_was_refused(tmp_path: Path, world: World) -> None:
    async def main(executor: Any) -> Any:
        asked = await executor.run(plan(do("a", approval={"prompt": "go?"}), on_failure="stop"), uid="r")
        await executor.answer("r", asked.questions[0].id, False)
        assert (await executor.resume("r")).status is RunStatus.FAILED
        again = await executor.retry("r")
        await executor.answer("r", again.questions[0].id, True)
        return await executor.resume("r")

    assert world.using(tmp_path, main).output == {"a": "a!"}


def _slow(world: World) -> tuple[Any, Any]:
    """A call whose first attempt has its effect and times out, and a node that ends while its outcome is unknown."""

    @handler("slow", effects="idempotent", timeout_s=0.05)
    async def slow(name: str) -> str:
        if name in world.did:
            return "known"
        world.act(name)
        await asyncio.sleep(5)
        return "never"

    @handler("later", effects="none")
    async def later(fails: bool = False) -> int:
        await asyncio.sleep(0.15)
        if fails:
            raise Permanent("no")
        return 1

    return slow, later


def _slow_node() -> dict[str, Any]:
    return {
        "id": "k",
        "handler": "slow",
        "args": {"name": "k"},
        "retry": {"first_s": 0.4, "jitter": 0},
        "compensate": {"handler": "undo"},
    }


def test_a_new_plan_keeps_a_call_whose_outcome_is_unknown(tmp_path: Path, world: World) -> None:
    @handler("without", effects="none")
    async def without() -> dict[str, Any]:
        return plan(do("c"))

    made = plan(_slow_node(), {"id": "b", "handler": "later", "args": {"fails": True}}, replan={"handler": "without"})

    async def main(executor: Any) -> Any:
        return await executor.run(made, uid="r"), await executor.status("r")

    result, view = world.using(tmp_path, main, *_slow(world), without)
    assert result.status is RunStatus.SUCCEEDED
    assert view.nodes["k"].state is NodeState.SUCCEEDED and sorted(world.did) == ["c", "k"]


def test_a_met_join_leaves_a_call_whose_outcome_is_unknown(tmp_path: Path, world: World) -> None:
    world.fail("j", Permanent("no"))
    joined = do("j", "k", "f", join="any", cancel_rest=True)
    result = world.run(tmp_path, plan(_slow_node(), {"id": "f", "handler": "later"}, joined), *_slow(world))
    assert (result.status, world.did) == (RunStatus.ROLLED_BACK, ["k", "undo k"])


def test_steps_that_no_compensation_undid_remain(tmp_path: Path, world: World) -> None:
    """Those before a fallback, and those of a node that failed."""

    @handler("pays", effects="steps")
    async def pays(ctx: Context, name: str) -> str:
        await ctx.step("pay", lambda: world.act(f"pay {name}"))
        raise Permanent("no")

    node = {"id": "p", "handler": "pays", "args": {"name": "p"}, "compensate": {"handler": "undo"}}
    fallback = [{"handler": "do", "args": {"name": "alt"}}]
    world.fail("z", Permanent("no"))
    result = world.run(tmp_path, plan(node | {"fallback": fallback}, do("z", "p")), pays)
    assert (result.status, result.remains) == (RunStatus.ROLLED_BACK, ("p",))
    assert world.run(tmp_path, plan(do("a", undo=True), node | {"after": ["a"]}), pays).remains == ("p",)
    whole = plan(do("a", undo=True), node | {"after": ["a"], "compensate": {"handler": "undo", "partial": True}})
    assert world.run(tmp_path, whole, pays).remains == ()


def test_a_compensation_has_steps_of_its_own(tmp_path: Path, world: World) -> None:
    @handler("pay", effects="steps")
    async def pay(ctx: Context) -> str:
        return await ctx.step("call", lambda: world.act("pay"))

    @handler("refund", effects="steps")
    async def refund(ctx: Context) -> str:
        done = await ctx.step("call", lambda: world.act("refund"))
        return world.act(f"after {done}")

    world.fail("z", Permanent("no"))
    world.fail("after refund!", Permanent("later"))
    made = plan({"id": "p", "handler": "pay", "compensate": {"handler": "refund"}}, do("z", "p"))

    async def main(executor: Any) -> Any:
        return await executor.run(made, uid="r"), await executor.rollback("r")

    first, second = world.using(tmp_path, main, pay, refund)
    assert (first.status, second.status) == (RunStatus.ROLLBACK_FAILED, RunStatus.ROLLED_BACK)
    assert world.did == ["pay", "refund", "after refund!"]


def test_a_second_rollback_sees_what_the_first_undid(tmp_path: Path, world: World) -> None:
    world.fail("z", Permanent("no"))
    world.fail("undo a!", Permanent("later"))
    node = do("b", undo=True) | {"args": {"name": {"$ref": "a"}}}
    made = plan(do("a", undo=True), node, do("z", "b"))

    async def main(executor: Any) -> Any:
        return await executor.run(made, uid="r"), await executor.rollback("r")

    first, second = world.using(tmp_path, main)
    assert (first.status, second.status) == (RunStatus.ROLLBACK_FAILED, RunStatus.ROLLED_BACK)
    assert world.did == ["a", "a!", "undo a", "undo a!"]


def test_sync_handlers_spend_from_their_threads_and_nothing_is_lost(tmp_path: Path, world: World) -> None:
    @handler("spends", effects="none")
    def spends(ctx: Context) -> None:
        for _ in range(100):
            ctx.spend(tokens=1)

    made = plan({"id": "s", "handler": "spends", "map": {"over": list(range(8))}})

    async def main(executor: Any) -> Any:
        await executor.run(made, uid="r")
        await executor.run({**made, "budgets": {"spend": {"tokens": 150}}}, uid="poor")
        return (await executor.status("r")).run.spent, await executor.result("poor")

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        spent, poor = world.using(tmp_path, main, spends)
    finally:
        sys.setswitchinterval(switch)
    assert spent == {"tokens": 800.0}
    assert (poor.status, "above its budget" in poor.error) == (RunStatus.FAILED, True)


def test_a_sync_handler_keeps_itself_alive_and_no_later_attempt(tmp_path: Path, world: World) -> None:
    attempts: list[int] = []

    @handler("beats", effects="none", timeout_s=0.5)
    def beats(ctx: Context) -> str:
        for _ in range(14):
            time.sleep(0.05)
            ctx.heartbeat()
        return "alive"

    @handler("zombie", effects="none", timeout_s=0.2)
    def zombie(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            time.sleep(0.25)
            for _ in range(15):
                time.sleep(0.05)
                ctx.heartbeat()
        else:
            time.sleep(0.6)
        return "too late"

    assert world.run(tmp_path, plan({"id": "b", "handler": "beats"}), beats).output == {"b": "alive"}
    node = {"id": "z", "handler": "zombie", "retry": {"attempts": 2, "first_s": 0}}
    result = world.run(tmp_path, plan(node), zombie)
    assert (result.status, attempts) == (RunStatus.FAILED, [1, 2]) and "no heartbeat" in result.error


def test_a_loop_that_stalled_has_all_its_rounds_again_after_a_return(tmp_path: Path, world: World) -> None:
    rounds: list[int] = []

    @handler("same", effects="none")
    async def same(round: int) -> int:
        rounds.append(round)
        return 1

    loop = {"max_rounds": 20, "until": {"gt": [{"$ref": "output"}, 1]}, "stall_after": 3}
    node = {"id": "l", "handler": "same", "args": {"round": {"$ref": "round"}}, "after": ["a"], "loop": loop}
    result = world.run(tmp_path, plan(do("a", savepoint="base"), node, rollback_to="base"), same)
    assert "NoProgress" in result.error and rounds == [1, 2, 3, 4, 1, 2, 3, 4]
