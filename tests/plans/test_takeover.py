"""What a failed node may have done is undone before a fallback, a new plan or the rest of the plan takes over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Permanent, Transient, World, do, plan

from midstream.plans import Context, Handler, NodeState, RunStatus, handler

UNDO = {"handler": "undo", "partial": True, "retry": {"attempts": 2, "first_s": 0}}


def pays(world: World) -> Handler:
    """Pays in one step, then fails."""

    @handler("pays", effects="steps")
    async def pays(ctx: Context, name: str) -> str:
        await ctx.step("pay", lambda: world.act(f"pay {name}"))
        raise Permanent("no")

    return pays


def node(*names: str, **fields: Any) -> dict[str, Any]:
    """The node `p`, which pays and fails; `names` are fallbacks, those that begin with `pay` fail in the same way."""
    fallback = [{"handler": "pays" if name.startswith("p") else "do", "args": {"name": name}} for name in names]
    return {"id": "p", "handler": "pays", "args": {"name": "p"}, "compensate": UNDO, "fallback": fallback, **fields}


def test_a_fallback_begins_after_the_failed_handler_was_undone(tmp_path: Path, world: World) -> None:
    result = world.run(tmp_path, plan(do("a"), node("p2", "alt", after=["a"])), pays(world))
    assert result.output == {"p": "alt!"}
    assert world.did == ["a", "pay p", "undo p", "pay p2", "undo p2", "alt"]


def test_what_was_undone_before_a_fallback_does_not_remain_and_is_not_undone_again(
    tmp_path: Path, world: World
) -> None:
    world.fail("z", Permanent("no"))
    result = world.run(tmp_path, plan(node("alt"), do("z", "p")), pays(world))
    assert (result.status, result.remains) == (RunStatus.ROLLED_BACK, ())
    assert world.did == ["pay p", "undo p", "alt", "undo alt"]


def test_no_fallback_begins_beside_what_could_not_be_undone(tmp_path: Path, world: World) -> None:
    world.fail("undo p", Transient("busy"), Permanent("later"), Permanent("later"))

    async def main(executor: Any) -> Any:
        first = await executor.run(plan(do("a", undo=True), node("alt", after=["a"])), uid="r")
        return first, await executor.rollback("r")

    first, second = world.using(tmp_path, main, pays(world))
    assert (first.status, first.remains, first.error) == (RunStatus.ROLLBACK_FAILED, ("p",), "Permanent: no")
    assert (second.status, second.remains) == (RunStatus.ROLLED_BACK, ())
    assert world.did == ["a", "pay p", "undo a", "undo p"]


def test_the_fallback_of_a_sub_plan_does_not_begin_beside_what_could_not_be_undone(
    tmp_path: Path, world: World
) -> None:
    world.fail("y", Permanent("no"))
    world.fail("undo x", Permanent("later"))
    inner = plan(do("x", undo=True), do("y", "x"))
    made = plan({"id": "s", "plan": inner, "fallback": [{"handler": "do", "args": {"name": "other"}}]})
    result = world.run(tmp_path, made)
    assert (result.status, result.error) == (RunStatus.ROLLED_BACK, "Permanent: no")
    assert world.did == ["x", "undo x"]  # the rollback of the run tried it again


@handler("without", effects="none")
async def without(plan: dict[str, Any], failed: str, states: dict[str, str]) -> dict[str, Any]:
    assert states[failed] == "failed"
    return {**plan, "nodes": [do("instead")]}


@pytest.mark.parametrize("how", ["new plan", "allowed to fail", "element of a map"])
def test_a_run_goes_on_after_the_failed_node_was_undone(tmp_path: Path, world: World, how: str) -> None:
    after: dict[str, Any] = do("instead", "p", join="settled")
    if how == "new plan":
        made = plan(node(), replan={"handler": "without"})
    elif how == "allowed to fail":
        made = plan(node(on_failure="continue"), after)
    else:
        made = plan(node(map={"over": [1], "min_succeeded": 0}), after)
    result = world.run(tmp_path, made, pays(world), without)
    assert (result.status, world.did) == (RunStatus.SUCCEEDED, ["pay p", "undo p", "instead"])


def test_another_try_does_again_what_was_undone(tmp_path: Path, world: World) -> None:
    world.fail("alt", Permanent("no"))
    made = plan(node("alt"), on_failure="stop")

    async def main(executor: Any) -> Any:
        return await executor.run(made, uid="r"), await executor.retry("r")

    first, second = world.using(tmp_path, main, pays(world))
    assert (first.status, second.status) == (RunStatus.FAILED, RunStatus.SUCCEEDED)
    assert world.did == ["pay p", "undo p", "pay p", "undo p", "alt"]


def hangs(world: World) -> Handler:
    """Pays in a step that reports nothing."""

    @handler("hangs", effects="steps", timeout_s=0.05)
    async def hangs(ctx: Context, name: str) -> str:
        async def pay() -> str:
            world.act(f"pay {name}")
            await asyncio.Event().wait()
            return "never"

        return await ctx.step("pay", pay)

    return hangs


def test_a_step_in_doubt_is_undone_before_a_fallback(tmp_path: Path, world: World) -> None:
    made = node("alt", handler="hangs", retry={"attempts": 1})
    result = world.run(tmp_path, plan(made), hangs(world))
    assert (result.output, world.did) == ({"p": "alt!"}, ["pay p", "undo p", "alt"])


def test_a_step_in_doubt_that_nothing_undoes_is_asked_about_before_a_fallback(tmp_path: Path, world: World) -> None:
    made = plan(node("alt", handler="hangs", retry={"attempts": 1}, compensate=None), do("z", "p"))
    world.fail("z", Permanent("no"))

    async def main(executor: Any) -> Any:
        first = await executor.run(made, uid="r")
        assert "Did step 'pay' of 'p' have its effect?" in first.questions[0].prompt and world.did == ["pay p"]
        await executor.answer("r", first.questions[0].id, {"outcome": "failed"})
        return await executor.resume("r")

    result = world.using(tmp_path, main, hangs(world))
    assert world.did == ["pay p", "alt"]
    assert (result.status, result.remains) == (RunStatus.FAILED, ("p",))


def test_a_node_that_failed_with_a_step_in_doubt_is_undone_with_the_run(tmp_path: Path, world: World) -> None:
    result = world.run(tmp_path, plan(node(handler="hangs", retry={"attempts": 1})), hangs(world))
    assert (result.status, world.did) == (RunStatus.ROLLED_BACK, ["pay p", "undo p"])


@pytest.mark.parametrize("undone", [True, False])
def test_a_call_in_doubt_that_a_person_says_failed_is_undone_before_its_fallback(
    tmp_path: Path, world: World, undone: bool
) -> None:
    @handler("sends", timeout_s=0.05)
    async def sends(name: str) -> None:
        world.act(f"send {name}")
        await asyncio.Event().wait()

    made = plan(node("alt", handler="sends", compensate=UNDO if undone else None), do("z", "p"))
    world.fail("z", Permanent("no"))

    async def main(executor: Any) -> Any:
        first = await executor.run(made, uid="r")
        await executor.answer("r", first.questions[0].id, {"outcome": "failed"})
        return await executor.resume("r")

    result = world.using(tmp_path, main, sends)
    assert world.did == (["send p", "undo p", "alt", "undo alt"] if undone else ["send p", "alt"])
    assert result.remains == (() if undone else ("p",))


def test_what_a_failed_node_did_is_undone_once_when_its_scope_fails_meanwhile(tmp_path: Path, world: World) -> None:
    @handler("slow_undo", effects="idempotent")
    async def slow_undo(args: dict[str, Any]) -> None:
        await asyncio.sleep(0.2)
        world.act(f"undo {args['name']}")

    @handler("fails", effects="none")
    async def fails() -> None:
        await asyncio.sleep(0.05)
        raise Permanent("meanwhile")

    made = plan(node("alt", compensate={**UNDO, "handler": "slow_undo"}), {"id": "f", "handler": "fails"})
    result = world.run(tmp_path, made, pays(world), slow_undo, fails)
    assert (result.status, result.error, result.remains) == (RunStatus.ROLLED_BACK, "Permanent: meanwhile", ())
    assert world.did == ["pay p", "undo p"]


def test_draining_stops_before_the_compensation_and_the_next_worker_goes_on(tmp_path: Path, world: World) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    @handler("waits", effects="steps")
    async def waits(ctx: Context, name: str) -> None:
        await ctx.step("pay", lambda: world.act(f"pay {name}"))
        started.set()
        await go_on.wait()
        raise Permanent("no")

    made = plan(node("alt", handler="waits"))

    async def first(executor: Any) -> Any:
        run = asyncio.create_task(executor.run(made, uid="r"))
        await started.wait()
        draining = asyncio.create_task(executor.drain())
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.gather(run, draining, return_exceptions=True)
        return (await executor.status("r")).nodes["p"].state

    assert world.using(tmp_path, first, waits) is NodeState.COMPENSATING and world.did == ["pay p"]
    result = world.using(tmp_path, lambda executor: executor.resume("r"), waits)
    assert (result.output, world.did) == ({"p": "alt!"}, ["pay p", "undo p", "alt"])
