"""A scripted engine returns canned replies with the configured latency."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from midstream.core.errors import EngineError
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request
from midstream.engines.scripted import ScriptedEngine


def request_of(session: str = "one", role: str = "", **sampling) -> Request:
    return Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(**sampling), session=session, role=role)


def ask(engine: ScriptedEngine, session: str = "one", **sampling) -> Completion:
    return asyncio.run(engine.generate(request_of(session, **sampling)))


def test_a_text_answers_every_call_with_an_end_token(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "It is 161.")
    reply = [ask(engine), ask(engine, "two")]
    assert reply[0].ids == (*tiny_tokenizer.encode("It is 161."), tiny_tokenizer.closing_id())
    assert (reply[0].ids, reply[0].log_probs, reply[0].text) == (
        reply[1].ids,
        reply[1].log_probs,
        "It is 161.",
    )
    assert len(set(reply[0].log_probs)) == len(reply[0].ids)
    assert reply[0].finish_reason is FinishReason.STOP


def test_a_list_is_replayed_per_session_and_its_end_is_an_error(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, ["first", "second"])
    assert [ask(engine, name).text for name in ("a", "b", "a")] == ["first", "first", "second"]
    with pytest.raises(EngineError, match="2 replies, and session 'a'"):
        ask(engine, "a")
    engine.leave("a")
    assert ask(engine, "a").text == "first"


def test_a_function_answers_by_the_request_and_errors_are_raised(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, lambda request: f"{request.role} heard {len(request.prompt_ids)}")
    assert asyncio.run(engine.generate(request_of(role="planner"))).text == "planner heard 3"
    failing = ScriptedEngine(tiny_tokenizer, ["fine", EngineError("the engine broke")])
    assert ask(failing).text == "fine"
    with pytest.raises(EngineError, match="the engine broke"):
        ask(failing)


def test_a_reply_is_cut_at_the_calls_limits(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "one two three four")
    ids = tiny_tokenizer.encode("one two three four")
    exact = ask(engine, max_tokens=len(ids))
    assert (exact.ids, exact.finish_reason) == (ids, FinishReason.LENGTH)
    stopped = ask(engine, stop=("three",))
    assert stopped.text.endswith("three") and stopped.finish_reason is FinishReason.STOP
    # Text after the cut cannot stop it.
    assert ask(engine, stop=("four",), max_tokens=1).finish_reason is FinishReason.LENGTH


def test_tokens_take_the_configured_time(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "one two three four", latency_s=0.05, tokens_per_s=100)
    when: list[float] = []

    async def go() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def on_tokens(ids: Sequence[int], log_probs: Sequence[float]) -> None:
            when.append(loop.time() - began)

        plain = request_of()
        listened = Request(prompt_ids=(5,), sampling=SamplingParams(), session="two", on_tokens=on_tokens)
        await asyncio.gather(engine.generate(plain), engine.generate(listened))
        return loop.time() - began

    took = asyncio.run(go())
    assert all(later >= 0.05 + 0.01 * (place + 1) - 1e-3 for place, later in enumerate(when))
    assert took >= 0.05 + 0.01 * len(when) - 1e-3


def test_a_call_reports_the_version_at_its_start(tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "hello", latency_s=0.02, policy_version=3)

    async def go() -> list[Completion]:
        first = asyncio.create_task(engine.generate(request_of()))
        await asyncio.sleep(0.005)
        engine.policy_version = 4
        return [await first, await engine.generate(request_of())]

    assert [reply.policy_version for reply in asyncio.run(go())] == [3, 4]
