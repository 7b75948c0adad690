"""Questions, approvals and timers: typed, many at once, with expiry, surviving restarts; and calls in doubt."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tests.plans.world import World, do, plan
from tests.waiting import MovedClock

from midstream.core.errors import UserError
from midstream.plans import Context, NodeState, Question, RunStatus, handler


class Choice(BaseModel):
    seat: str
    bags: int = 0


def test_a_question_survives_restarts_and_its_side_effects_happen_once(tmp_path: Path, world: World) -> None:
    """The trap of interrupts that start the node again: what came before the question is not done twice."""
    times = 0

    @handler("checkin", effects="steps")
    async def checkin(ctx: Context) -> str:
        nonlocal times
        times += 1
        held = await ctx.step("hold", lambda: world.act("hold"))
        choice = await ctx.ask("seat", Choice, "Which seat?")
        await ctx.step("seat", lambda: world.act(f"seat {choice.seat}"))
        return f"{held} {choice.seat} {choice.bags}"

    made = plan({"id": "c", "handler": "checkin"})
    first = world.using(tmp_path, lambda executor: executor.run(made, uid="r"), checkin)
    assert first.status is RunStatus.WAITING and first.questions[0].prompt == "Which seat?"
    world.using(tmp_path, lambda executor: executor.answer("r", first.questions[0].id, {"seat": "4A"}), checkin)
    last = world.using(tmp_path, lambda executor: executor.resume("r"), checkin)
    assert last.output == {"c": "hold! 4A 0"}
    assert world.did == ["hold", "seat 4A"] and times == 2


def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays(tmp_path: Path, world: World) -> None:
    made = plan({"id": "q", "handler": "ask", "args": {"prompt": "?", "answer": {"type": "integer"}}})

    async def main(executor: Any) -> Any:
        asked = (await executor.run(made, uid="r")).questions[0]
        for value, said in (("x", "'x' is not of type 'integer'"), (None, "not of type")):
            with pytest.raises(UserError, match=said):
                await executor.answer("r", asked.id, value)
        with pytest.raises(UserError, match="no open question 'nothing'"):
            await executor.answer("r", "nothing", 1)
        await executor.answer("r", asked.id, 1)
        with pytest.raises(UserError, match="no open question"):
            await executor.answer("r", asked.id, 2)
        return await executor.resume("r")

    assert world.using(tmp_path, main).output == {"q": 1}


def test_many_questions_are_open_at_once_within_a_node_and_between_nodes(tmp_path: Path, world: World) -> None:
    @handler("survey", effects="none")
    async def survey(ctx: Context) -> list[Any]:
        answers = await ctx.ask_many({"age": Question(int), "name": Question(str), "any": Question()})
        return [answers["age"], answers["name"], answers["any"]]

    made = plan({"id": "s", "handler": "survey"}, {"id": "q", "handler": "ask", "args": {"prompt": "?"}}, do("a"))

    async def main(executor: Any) -> Any:
        result = await executor.run(made, uid="r")
        assert len(result.questions) == 4 and world.did == ["a"]
        for question in result.questions:
            value = {"integer": 7, "string": "Ann"}.get(question.schema.get("type"), [1])
            await executor.answer("r", question.id, value)
        return await executor.resume("r")

    assert world.using(tmp_path, main, survey).output == {"s": [7, "Ann", [1]], "q": [1], "a": "a!"}


def test_a_waiting_node_holds_no_place(tmp_path: Path, world: World) -> None:
    made = plan({"id": "q", "handler": "ask", "args": {"prompt": "?"}}, do("a"), do("b"))
    world.run(tmp_path, made, max_concurrency=1)
    assert sorted(world.did) == ["a", "b"]


@pytest.mark.parametrize(("default", "status"), [({"default": "none"}, RunStatus.SUCCEEDED), ({}, RunStatus.FAILED)])
def test_a_question_expires(
    tmp_path: Path, world: World, clock: MovedClock, default: dict[str, Any], status: RunStatus
) -> None:
    @handler("asks", effects="none")
    async def asks(ctx: Context) -> str:
        return await ctx.ask("k", str, expires_s=60, **default)

    made = plan({"id": "q", "handler": "asks"})
    first = world.using(tmp_path, lambda executor: executor.run(made, uid="r"), asks)
    assert first.questions[0].expires_at == clock.time() + 60
    clock.advance(61)
    last = world.using(tmp_path, lambda executor: executor.resume("r"), asks)
    assert last.status is status and (last.output == {"q": "none"} or "nobody answered 'k' in time" in last.error)


def test_a_timer_goes_on_after_a_restart_and_a_clock_set_back_makes_it_no_longer(
    tmp_path: Path, world: World, clock: MovedClock
) -> None:
    made = plan({"id": "s", "handler": "sleep", "args": {"seconds": 100}}, do("a", "s"))

    async def drained(executor: Any) -> None:
        running = asyncio.create_task(executor.run(made, uid="r"))
        while (await executor.status("r")).nodes.get("s") is None or not clock.sleeping:
            await asyncio.sleep(0.01)
        await executor.drain()
        await running

    async def resumed(executor: Any) -> Any:
        running = asyncio.create_task(executor.resume("r"))
        for _ in range(400):
            await asyncio.sleep(0.01)
            if clock.sleeping:
                break
        clock.advance(0.5)
        await asyncio.sleep(0.05)
        early = list(world.did)
        while not running.done():
            clock.advance(25)
            await asyncio.sleep(0.01)
        return early, await running

    async def start(executor: Any) -> None:
        await executor.start(made, uid="r")

    world.using(tmp_path, start)
    world.using(tmp_path, drained)
    clock._began -= 5000  # pyright: ignore[reportPrivateUsage]  the wall clock is set back, the other goes on
    began = clock.monotonic()
    early, result = world.using(tmp_path, resumed)
    assert early == [] and result.status is RunStatus.SUCCEEDED
    assert clock.monotonic() - began < 500


def test_a_node_starts_only_when_it_is_approved(tmp_path: Path, world: World) -> None:
    made = plan(do("a", approval={"prompt": "Pay?"}), do("b", approval={}, on_failure="continue"))

    async def main(executor: Any) -> Any:
        result = await executor.run(made, uid="r")
        assert world.did == [] and result.questions[0].prompt == "Pay?"
        for question in result.questions:
            await executor.answer("r", question.id, question.path == "a")
        return await executor.resume("r"), await executor.status("r")

    result, view = world.using(tmp_path, main)
    assert result.status is RunStatus.SUCCEEDED and world.did == ["a"]
    assert view.nodes["b"].error == {
        "kind": "permanent", "type": "Permanent", "message": "its start was not approved",
    }  # fmt: skip


def test_a_handler_whose_effects_would_repeat_may_not_wait(tmp_path: Path, world: World) -> None:
    @handler("pays")
    async def pays(ctx: Context) -> None:
        await ctx.ask("sure", bool)

    result = world.run(tmp_path, plan({"id": "p", "handler": "pays"}), pays)
    assert "a handler with effects 'once' cannot ask" in result.error and "declare effects='steps'" in result.error


@pytest.mark.parametrize(
    ("answer", "did", "status", "output"),
    [
        ({"outcome": "done", "output": "by hand"}, ["a"], RunStatus.SUCCEEDED, {"end": "by hand"}),
        ({"outcome": "not_done"}, ["a", "a"], RunStatus.SUCCEEDED, {"end": "a!"}),
        ({"outcome": "failed"}, ["a"], RunStatus.FAILED, None),
    ],
)
def test_a_call_whose_outcome_is_lost_is_in_doubt_until_a_person_decides(
    tmp_path: Path, world: World, answer: dict[str, Any], did: list[str], status: RunStatus, output: Any
) -> None:
    @handler("slow_pay")
    async def slow_pay() -> str:
        done = world.act("a")
        if len(world.did) == 1:
            await asyncio.Event().wait()
        return done

    nodes = [{"id": "p", "handler": "slow_pay", "timeout_s": 0.05}]
    made = plan(*nodes, {"id": "end", "handler": "value", "args": {"value": {"$ref": "p"}}})

    async def main(executor: Any) -> Any:
        first = await executor.run(made, uid="r")
        view = await executor.status("r")
        assert view.nodes["p"].state is NodeState.IN_DOUBT and first.status is RunStatus.WAITING
        assert first.questions[0].prompt == "Did 'p' (slow_pay@1) have its effect? Its key is r/p/0.0."
        await executor.answer("r", first.questions[0].id, answer)
        return await executor.resume("r")

    result = world.using(tmp_path, main, slow_pay)
    assert (result.status, result.output, world.did) == (status, output, did)


def test_a_step_in_doubt_is_asked_about_by_name(tmp_path: Path, world: World) -> None:
    @handler("two_steps", effects="steps")
    async def two_steps(ctx: Context) -> list[str]:
        async def slow() -> str:
            done = world.act("second")
            if world.did.count("second") == 1:
                await asyncio.Event().wait()
            return done

        return [await ctx.step("first", lambda: world.act("first")), await ctx.step("second", slow)]

    made = plan({"id": "n", "handler": "two_steps", "timeout_s": 0.1, "retry": {"first_s": 0}})

    async def main(executor: Any) -> Any:
        first = await executor.run(made, uid="r")
        assert "Did step 'second' of 'n' have its effect?" in first.questions[0].prompt
        await executor.answer("r", first.questions[0].id, {"outcome": "done", "output": "yes"})
        return await executor.resume("r")

    assert world.using(tmp_path, main, two_steps).output == {"n": ["first!", "yes"]}
    assert world.did == ["first", "second"]


def test_steps_of_a_failed_node_can_be_compensated(tmp_path: Path, world: World) -> None:
    @handler("half", effects="steps")
    async def half(ctx: Context, name: str) -> None:
        await ctx.step("one", lambda: world.act("one"))
        raise ValueError("no")

    for partial, did in ((True, ["one", "undo half"]), (False, ["one"])):
        world.did.clear()
        undo = {"handler": "undo", "partial": partial}
        world.run(tmp_path, plan({"id": "h", "handler": "half", "args": {"name": "half"}, "compensate": undo}), half)
        assert world.did == did
