"""Handlers, plans and answers that misbehave: each ends in a state with a name, and the run can still be read."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import World, plan

from midstream.plans import Context, PlanError, RunStatus, handler, load_plan
from midstream.plans.errors import AnswerRefused

ONCE = {"attempts": 1}


def node(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "handler": name, "retry": ONCE, **fields}


class Unreadable(Exception):
    """Its message raises."""

    def __str__(self) -> str:
        raise RuntimeError("no message")


@handler("stops", effects="none")
def stops() -> int:
    return next(iter(list[int]()))


@handler("unreadable", effects="none")
async def unreadable() -> None:
    raise Unreadable


@handler("surrogate", effects="none")
async def surrogate() -> None:
    raise ValueError("bad \ud800 text")


@handler("sleeps", effects="steps")
async def sleeps(ctx: Context) -> None:
    await ctx.sleep("k", float("nan"))


@handler("expires", effects="steps")
async def expires(ctx: Context) -> None:
    await ctx.ask("k", int, "?", expires_s=float("inf"))


@handler("asks", effects="steps")
async def asks(ctx: Context) -> None:
    await ctx.ask("k", {"type": "nonsense"}, "?")


@handler("twice", effects="steps")
async def twice(ctx: Context) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.01)

    await asyncio.gather(ctx.step("k", slow), ctx.step("k", slow))


@handler("keyed", effects="steps")
async def keyed(ctx: Context) -> None:
    await ctx.step("a\x00b", lambda: None)


@handler("refunds", effects="none")
async def refunds(ctx: Context, amount: float | None = None) -> None:
    ctx.spend(tokens=float("nan") if amount is None else amount)


HANDLERS = (stops, unreadable, surrogate, sleeps, expires, asks, twice, keyed, refunds)


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (node("stops"), "RuntimeError: it raised StopIteration"),
        (node("unreadable"), "Unreadable: its message cannot be read: RuntimeError"),
        (node("surrogate"), "ValueError: bad \\ud800 text"),
        (node("sleeps"), "Permanent: sleep takes a number of seconds, not nan"),
        (node("expires"), "Permanent: expires_s takes a number of seconds, not inf"),
        (node("asks"), "Permanent: no answer to 'k' can be taken: its schema is not valid"),
        (node("twice"), "Permanent: two steps with the key 'k' run at once"),
        (node("keyed"), "Permanent: the key 'a\\x00b' of a step must be at most 500 printable characters"),
        (node("refunds"), "Permanent: nan of tokens cannot be spent"),
        (node("refunds", args={"amount": -5}), "Permanent: -5.0 of tokens cannot be spent"),
    ],
)
def test_what_a_handler_does_wrong_fails_its_node(
    tmp_path: Path, world: World, made: dict[str, Any], error: str
) -> None:
    async def main(executor: Any) -> Any:
        return await asyncio.wait_for(executor.run(plan(made, budgets={"spend": {"tokens": 5}}), uid="r"), 20)

    result = world.using(tmp_path, main, *HANDLERS)
    assert result.status is RunStatus.FAILED and result.error.startswith(error)


@pytest.mark.parametrize(
    "value", [float("nan"), {1, 2}, b"x", 10**5000, "seven"], ids=lambda value: type(value).__name__
)
def test_an_answer_that_is_not_json_or_does_not_fit_is_refused(tmp_path: Path, world: World, value: Any) -> None:
    asking = {"id": "q", "handler": "ask", "args": {"prompt": "?", "answer": {"type": "number"}}}

    async def main(executor: Any) -> Any:
        (question,) = (await executor.run(plan(asking), uid="r")).questions
        with pytest.raises(AnswerRefused):
            await executor.answer("r", question.id, value)
        await executor.answer("r", question.id, 7)
        return await executor.resume("r")

    assert world.using(tmp_path, main).output == {"q": 7}


def test_an_answer_is_checked_as_the_node_gets_it(tmp_path: Path, world: World) -> None:
    schema = {"type": "object", "properties": {"1": {"type": "string"}}}
    asking = {"id": "q", "handler": "ask", "args": {"prompt": "?", "answer": schema}}

    async def main(executor: Any) -> Any:
        (question,) = (await executor.run(plan(asking), uid="r")).questions
        with pytest.raises(AnswerRefused, match="is not of type 'string'"):
            await executor.answer("r", question.id, {1: 2})  # as JSON, its key is the text "1"

    world.using(tmp_path, main)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"name": "\ud800"}, "name: use at most 200 printable characters"),
        ({"name": "a\x00"}, "name: use at most 200 printable characters"),
        ({"nodes": [node("value", args={"value": [float("nan")]})]}, "nan is not a number in JSON"),
    ],
)
def test_a_plan_that_the_journal_would_change_or_refuse_is_not_valid(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError) as refused:
        load_plan({**plan(node("value", args={"value": 1})), **fields})
    assert problem in str(refused.value)
