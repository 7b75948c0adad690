"""Sampling settings are applied exactly, and a failing call does not affect others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from midstream.core.errors import EngineError, PromptTooLong
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, Request


def ask(policy, text: str = "How many are there?", session: str = "a", **sampling) -> Completion:
    request = Request(prompt_ids=policy.tokenizer.encode(text), sampling=SamplingParams(**sampling), session=session)
    completion = asyncio.run(policy.engine.generate(request))
    policy.engine.leave(session)
    return completion


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy()


def test_responses_depend_on_the_seed(policy) -> None:
    reply = [ask(policy, max_tokens=12, seed=seed).ids for seed in (7, 7, 8)]
    assert reply[0] == reply[1] != reply[2]
    assert ask(policy, max_tokens=12).ids != ask(policy, max_tokens=12).ids


def test_a_seed_affects_only_its_request(policy) -> None:
    async def together() -> list[Completion]:
        prompt = policy.tokenizer.encode("How many are there?")
        requests = [
            Request(prompt_ids=prompt, sampling=SamplingParams(max_tokens=12, seed=seed), session=str(place))
            for place, seed in enumerate((7, 8, 7))
        ]
        return await asyncio.gather(*[policy.engine.generate(request) for request in requests])

    first, second, third = asyncio.run(together())
    assert first.ids == third.ids != second.ids
    assert first.ids == ask(policy, max_tokens=12, seed=7).ids


def test_max_tokens_ends_a_response_with_the_reason_length(policy) -> None:
    reply = ask(policy, max_tokens=5, seed=1)
    assert len(reply.ids) == len(reply.log_probs) == 5
    assert reply.finish_reason is FinishReason.LENGTH
    assert reply.text == policy.tokenizer.decode(reply.ids)


def test_an_end_token_stops_the_response_and_is_kept_but_not_decoded(policy) -> None:
    async def together() -> list[Completion]:
        prompt = policy.tokenizer.encode("How many are there?")
        requests = [
            Request(prompt_ids=prompt, sampling=SamplingParams(max_tokens=200, seed=seed), session=str(seed))
            for seed in range(12)
        ]
        return await asyncio.gather(*[policy.engine.generate(request) for request in requests])

    seen = asyncio.run(together())
    stopped = [one for one in seen if one.finish_reason is FinishReason.STOP]
    assert stopped, "none of twelve long responses met an end token"
    for one in stopped:
        assert one.ids[-1] in policy.tokenizer.end_ids
        assert not set(one.ids[:-1]) & policy.tokenizer.end_ids
        assert one.text == policy.tokenizer.decode(one.ids[:-1])


def test_a_stop_string_ends_the_response_with_its_last_token(policy) -> None:
    whole = ask(policy, max_tokens=20, seed=5)
    stop = whole.text[4:7]
    cut = ask(policy, max_tokens=20, seed=5, stop=("never said", stop))
    assert cut.finish_reason is FinishReason.STOP
    assert stop in cut.text
    assert stop not in policy.tokenizer.decode(cut.ids[:-1])
    assert cut.ids == whole.ids[: len(cut.ids)]
    assert cut.log_probs == whole.log_probs[: len(cut.ids)]


def test_greedy_picks_the_top_token_and_reports_temperature_one(policy) -> None:
    import torch

    from midstream.learn.model.log_probs import TokenSequence, score

    prompt = policy.tokenizer.encode("How many are there?")
    reply = ask(policy, max_tokens=6, temperature=0.0, seed=1)
    assert reply.ids == ask(policy, max_tokens=6, temperature=0.0, seed=2).ids
    found = score(policy.decoder, [TokenSequence(prompt, reply.ids)]).log_probs.detach()
    assert (found - torch.tensor(reply.log_probs)).abs().max() <= 1e-5
    for place, token in enumerate(reply.ids):
        others = [TokenSequence(prompt + reply.ids[:place], (other,)) for other in range(0, len(policy.tokenizer), 7)]
        best = score(policy.decoder, [*others, TokenSequence(prompt + reply.ids[:place], (token,))]).log_probs
        assert int(best.argmax()) == len(others) or float(best.max()) == float(best[-1])


def test_a_prompt_that_fills_the_context_is_refused_and_not_cut(policy) -> None:
    context = policy.engine.context_length
    request = Request(prompt_ids=(5,) * context, sampling=SamplingParams(max_tokens=1), session="a")
    with pytest.raises(PromptTooLong, match=f"{context} tokens"):
        asyncio.run(policy.engine.generate(request))


def test_a_response_ends_at_the_context_length(make_policy) -> None:
    policy = make_policy()
    policy.decoder.context_length = 40
    prompt = tuple(range(10, 47))
    request = Request(prompt_ids=prompt, sampling=SamplingParams(max_tokens=50, seed=0), session="a")
    reply = asyncio.run(policy.engine.generate(request))
    assert len(reply.ids) == 3
    assert reply.finish_reason is FinishReason.LENGTH


def test_an_empty_prompt_is_an_engine_error(policy) -> None:
    with pytest.raises(EngineError, match="empty prompt"):
        asyncio.run(policy.engine.generate(Request(prompt_ids=(), sampling=SamplingParams(), session="a")))


@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_unknown_token_id_is_refused_before_the_forward_pass(policy, token: int) -> None:
    bad = Request(prompt_ids=(5, token), sampling=SamplingParams(max_tokens=2), session="a")
    with pytest.raises(EngineError, match="outside the model's vocabulary"):
        asyncio.run(policy.engine.generate(bad))


def test_a_failed_forward_pass_fails_its_calls_and_the_next_call_works(make_policy, monkeypatch) -> None:
    policy = make_policy()
    with monkeypatch.context() as broken:
        broken.setattr(policy.engine._cached, "extend", lambda slots, deltas, adapters: deltas[99])
        with pytest.raises(EngineError, match="IndexError"):
            ask(policy, max_tokens=3, seed=1)
    assert ask(policy, max_tokens=3, seed=1).ids


def test_a_cancelled_call_does_not_affect_others(make_policy) -> None:
    """Its slot is reused only after the last write to it."""
    policy = make_policy(slots=2)
    engine, prompt = policy.engine, policy.tokenizer.encode("Which city has more people?")

    def call(session: str, max_tokens: int) -> Request:
        return Request(prompt_ids=prompt, sampling=SamplingParams(max_tokens=max_tokens, seed=9), session=session)

    expected = ask(policy, "Which city has more people?", max_tokens=30, seed=9).ids

    async def go() -> list[Completion]:
        engine.join("given up")
        engine.join("steady")
        steady = asyncio.create_task(engine.generate(call("steady", 30)))
        given_up = asyncio.create_task(engine.generate(call("given up", 4000)))
        await asyncio.sleep(0.02)
        given_up.cancel()
        await asyncio.sleep(0)
        engine.leave("given up")
        later = await asyncio.gather(engine.generate(call("later", 30)), steady)
        engine.leave("later")
        # The engine does not work on cancelled calls.
        async with asyncio.timeout(60), engine.exclusive():
            return later

    for completion in asyncio.run(go()):
        assert completion.ids == expected


def test_a_cancelled_call_stops_decoding_and_frees_its_slot(make_policy) -> None:
    engine = make_policy().engine
    received_tokens: list[int] = []

    def call(**parts: Any) -> asyncio.Task[Completion]:
        sampling = SamplingParams(max_tokens=3000, seed=9)
        return asyncio.create_task(engine.generate(Request(prompt_ids=(5, 6, 7), sampling=sampling, **parts)))

    async def give_up(task: asyncio.Task[Completion]) -> None:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def go() -> None:
        running = call(on_tokens=lambda ids, log_probs: received_tokens.extend(ids))
        while not received_tokens:
            await asyncio.sleep(0.001)
        await give_up(running)
        sampled = engine.tokens_sampled
        async with engine.exclusive():
            # One decoding step was already running.
            assert engine.tokens_sampled <= sampled + 1
            assert len(engine._slots) == 0
            waiting = call()
            await asyncio.sleep(0.001)
            assert len(engine._waiting) == 1
            await give_up(waiting)
            assert engine._waiting == []

    asyncio.run(go())


def test_exclusive_use_nests(make_policy) -> None:
    engine = make_policy().engine

    async def go() -> None:
        request = Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=2, seed=9))
        async with engine.exclusive():
            waiting = asyncio.create_task(engine.generate(request))
            async with engine.exclusive():
                pass
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waiting.done() and engine.tokens_sampled == 0
        assert len((await waiting).ids) == 2

    asyncio.run(go())


def test_a_call_waiting_for_a_slot_does_not_block_others(make_policy) -> None:
    engine = make_policy(slots=1).engine

    async def call(session: str) -> Completion:
        request = Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=2, seed=1), session=session)
        return await engine.generate(request)

    async def go() -> list[Completion]:
        async with asyncio.timeout(60):
            return [await call("a"), *await asyncio.gather(call("b"), call("a"))]

    first, newcomer, second = asyncio.run(go())
    assert first.ids == newcomer.ids == second.ids


def test_deterministic_engines_of_one_flow_do_not_wait_for_each_other(make_policy, tiny_tokenizer) -> None:
    """One trajectory waits for the policy while another waits for the frozen model: both proceed."""
    from midstream.engines.torch.engine import TorchEngine

    policy = make_policy(deterministic=True)
    frozen = TorchEngine(
        policy.decoder, tiny_tokenizer, name="frozen", adapter=None, deterministic=True, beside=policy.engine
    )

    async def speak(session: str, engines: list[TorchEngine]) -> None:
        for engine in engines:
            request = Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(max_tokens=2, seed=1), session=session)
            await engine.generate(request)
        for engine in (policy.engine, frozen):
            engine.leave(session)

    async def go() -> None:
        for engine in (policy.engine, frozen):
            for session in ("a", "b"):
                engine.join(session)
        async with asyncio.timeout(60):
            await asyncio.gather(
                speak("a", [policy.engine, frozen, policy.engine]), speak("b", [frozen, frozen, policy.engine])
            )

    asyncio.run(go())


def test_deterministic_batches_do_not_depend_on_arrival_times(make_policy) -> None:
    def run(delays: dict[str, float]) -> tuple[list[tuple[float, ...]], list[list[str]]]:
        policy = make_policy(deterministic=True)
        together: list[list[str]] = []
        admit = policy.engine._admit

        def noted() -> list[Any]:
            rows = admit()
            together.extend([[row.request.session for row in rows]] if rows else [])
            return rows

        policy.engine._admit = noted

        async def speak(session: str) -> tuple[float, ...]:
            received_tokens: list[float] = []
            prompt = policy.tokenizer.encode(f"What is {session}?")
            for turn in range(2):
                await asyncio.sleep(delays[session])
                sampling = SamplingParams(max_tokens=8, seed=turn)
                reply = await policy.engine.generate(Request(prompt_ids=prompt, sampling=sampling, session=session))
                received_tokens += reply.log_probs
                prompt = (*prompt, *reply.ids, *policy.tokenizer.encode(" and"))
            policy.engine.leave(session)
            return tuple(received_tokens)

        async def go() -> list[tuple[float, ...]]:
            for session in delays:
                policy.engine.join(session)
            return await asyncio.gather(*[speak(session) for session in delays])

        return asyncio.run(go()), together

    quick = run({"one": 0.0, "two": 0.0, "three": 0.0})
    assert quick[1] == [["one", "three", "two"]] * 2
    assert quick == run({"one": 0.02, "two": 0.0, "three": 0.01})
