"""What `redact` removes is nowhere in the journal, and a run goes on with what is left, now and after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.plans.world import Correctable, Permanent, World, do, plan

from midstream.plans import AgentExecutor, Context, Handler, RunStatus, done, handler

SECRET = "hunter2"
LONG = "long " * 200


def redact(text: str) -> str:
    return text.replace(SECRET, "***")


def stored(folder: Path) -> str:
    """Everything in the files of the journal."""
    return "".join(file.read_bytes().decode(errors="replace") for file in folder.glob("plans.db*"))


def test_outputs_steps_errors_feedback_and_prompts_are_redacted(tmp_path: Path, world: World) -> None:
    seen: list[Any] = []

    @handler("login", effects="steps")
    async def login(ctx: Context, after: Any = None) -> dict[str, Any]:
        token = await ctx.step("token", lambda: f"token {SECRET} {LONG}")
        seen.append(token)
        await ctx.ask("sure", bool, f"Send {SECRET}?")
        return {"token": [token, [SECRET]], "length": 7}

    @handler("correct", effects="none")
    async def correct(ctx: Context) -> str:
        seen.append(ctx.feedback)
        if not ctx.feedback:
            raise Correctable(f"not {SECRET}")
        raise Permanent(f"still {SECRET}")

    @handler("read", effects="none")
    async def read(value: Any) -> Any:
        seen.append(value)
        return value

    nodes = [
        {"id": "l", "handler": "login"},
        {"id": "r", "handler": "read", "args": {"value": {"$ref": "l"}}},
        {"id": "c", "handler": "correct", "on_failure": "continue"},
    ]
    made = plan(*nodes, output={"$ref": "r"})
    more: list[Handler] = [login, correct, read]

    async def resumed(executor: AgentExecutor) -> Any:
        question = (await executor.questions("r"))[0]
        assert question.prompt == "Send ***?"
        await executor.answer("r", question.id, True)
        return await executor.resume("r"), await executor.status("r")

    world.using(tmp_path, lambda executor: executor.run(made, uid="r"), *more, redact=redact)
    assert SECRET not in stored(tmp_path)
    result, view = world.using(tmp_path, resumed, *more, redact=redact)
    token = f"token *** {LONG}"
    assert result.output == {"token": [token, ["***"]], "length": 7}
    assert (view.nodes["c"].error or {})["message"] == "still ***"
    assert seen[-1] == result.output and seen.count(token) == 2 and ("not ***",) in seen
    assert SECRET not in stored(tmp_path)


def test_errors_given_to_compensations_and_found_by_probes_are_redacted(tmp_path: Path, world: World) -> None:
    errors: list[Any] = []

    @handler("undo_it", effects="idempotent")
    async def undo_it(error: Any, output: Any) -> None:
        errors.append(output)
        if len(errors) == 1:
            raise Permanent(SECRET)

    @handler("found", effects="once", probe=lambda: done(f"found {SECRET}"), timeout_s=0.05)
    async def found() -> str:
        await asyncio.Event().wait()
        return ""

    world.fail("b", Permanent(SECRET))
    made = plan({"id": "f", "handler": "found", "compensate": {"handler": "undo_it"}}, do("b", "f"))
    result = world.run(tmp_path, made, found, undo_it, redact=redact)
    assert (result.status, result.error, errors) == (RunStatus.ROLLBACK_FAILED, "Permanent: ***", ["found ***"])
    assert SECRET not in stored(tmp_path)


def test_what_handlers_need_unchanged_is_not_redacted(tmp_path: Path, world: World) -> None:
    @handler("show", effects="none")
    async def show(ctx: Context, text: str) -> int:
        return len(text) + len(await ctx.ask("password", str))

    made = plan({"id": "s", "handler": "show", "args": {"text": {"$ref": "input.text"}}}, name=SECRET)

    async def main(executor: AgentExecutor) -> Any:
        asked = (await executor.run(made, {"text": SECRET}, uid="r")).questions[0]
        await executor.answer("r", asked.id, SECRET)
        return await executor.resume("r")

    assert world.using(tmp_path, main, show, redact=redact).output == {"s": 2 * len(SECRET)}


def test_nothing_is_stored_when_redaction_fails(tmp_path: Path, world: World) -> None:
    def broken(text: str) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.using(tmp_path, lambda executor: executor.run(plan(do("a")), uid="r"), redact=broken)
    assert "a!" not in stored(tmp_path)
    assert world.using(tmp_path, lambda executor: executor.resume("r"), redact=redact).status is RunStatus.SUCCEEDED
