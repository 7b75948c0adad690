"""Trying a failed run again repeats nothing that succeeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Permanent, World, do, plan

from midstream.plans import Context, RunStatus, handler

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
