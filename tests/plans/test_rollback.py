"""Rollback: what is compensated, in which order, and where a run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plans.world import Permanent, Transient, World, do, plan

from midstream.plans import Context, RunStatus, handler


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
