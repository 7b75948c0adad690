"""Retry, correction, fallback and replan: remedies with separate budgets, in this order."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Correctable, Fatal, Permanent, Transient, World, do, plan

from midstream.plans import AgentExecutor, Context, NodeState, RunStatus, handler


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


def test_a_node_above_its_budget_fails_and_its_fallback_takes_over(tmp_path: Path, world: World) -> None:
    """Its attempts add up, also those before a restart; another try begins with the whole budget."""

    @handler("model", effects="none")
    async def model(ctx: Context) -> str:
        ctx.spend(tokens=60)
        await ctx.ask("sure", bool)
        world.act("model")
        return "answer"

    node = {"id": "m", "handler": "model", "budget": {"tokens": 100}}
    fallback = [{"handler": "do", "args": {"name": "cheap"}}]

    def run(uid: str, **fields: Any) -> Any:
        async def main(executor: AgentExecutor) -> Any:
            await executor.answer(uid, (await executor.questions(uid))[0].id, True)
            return await executor.resume(uid)

        world.using(tmp_path, lambda executor: executor.run(plan(node | fields), uid=uid), model)
        return world.using(tmp_path, main, model)

    assert run("r", budget={"tokens": 120}).output == {"m": "answer"}
    assert run("s", fallback=fallback).output == {"m": "cheap!"}
    assert run("t").error == "Permanent: 'm' used 120 of tokens, above its budget of 100"
    again = world.using(tmp_path, lambda executor: executor.retry("t"), model)
    assert again.output == {"m": "answer"} and world.did == ["model", "cheap", "model"]


@pytest.mark.parametrize("repeated", ["map", "loop", "plan", "map of plans"])
def test_the_budget_of_a_node_covers_everything_in_it(tmp_path: Path, world: World, repeated: str) -> None:
    @handler("call", effects="none")
    async def call(ctx: Context) -> None:
        ctx.spend(tokens=40, calls=1)

    inner = plan(*({"id": f"c{at}", "handler": "call", "budget": {"tokens": 40}} for at in range(2)))
    shapes: dict[str, dict[str, Any]] = {
        "map": {"handler": "call", "map": {"over": [1, 2, 3, 4], "concurrency": 1}},
        "loop": {"handler": "call", "loop": {"max_rounds": 4}},
        "plan": {"plan": plan(*inner["nodes"], {"id": "m", "plan": inner})},
        "map of plans": {"plan": inner, "map": {"over": [1, 2]}},
    }

    def run(tokens: int) -> Any:
        return world.run(tmp_path, plan({"id": "n", **shapes[repeated], "budget": {"tokens": tokens}}), call)

    assert run(160).status is RunStatus.SUCCEEDED
    assert "'n' used 160 of tokens, above its budget of 159" in run(159).error


def test_a_compensation_is_not_stopped_by_the_budget_of_its_node(tmp_path: Path, world: World) -> None:
    @handler("costly", effects="idempotent")
    async def costly(ctx: Context) -> None:
        ctx.spend(tokens=40)
        world.act("undo")

    world.fail("b", Permanent("no"))
    made = plan(do("a", compensate={"handler": "costly"}, budget={"tokens": 1}), do("b", "a"))
    assert world.run(tmp_path, made, costly).status is RunStatus.ROLLED_BACK
    assert world.did == ["a", "undo"]


def test_secrets_stay_out_of_errors(tmp_path: Path, world: World) -> None:
    world.fail("a", Permanent("postgresql://me:hunter2@host/db refused"))
    assert "hunter2" not in world.run(tmp_path, plan(do("a"))).error


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
