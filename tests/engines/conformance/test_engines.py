"""Conformance tests for every engine that returns tokens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from midstream.core.errors import PromptTooLong, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import FinishReason
from midstream.engines.base import Completion, PolicyEngine, Request
from midstream.engines.publication import Publication
from midstream.engines.torch.lora import save_adapter

PROMPT = "Once upon a time there was a"
QUESTION = "How many are there in total?"


class ReceivedTokens:
    """Collects the arguments of `on_tokens`."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.log_probs: list[float] = []
        self.calls = 0

    def __call__(self, ids: Sequence[int], log_probs: Sequence[float]) -> None:
        assert len(ids) == len(log_probs) > 0
        self.calls += 1
        self.ids += ids
        self.log_probs += log_probs


def ask(subject, session: str = "one", text: str = PROMPT, **settings: Any) -> asyncio.Task[Completion]:
    parts = {name: settings.pop(name) for name in ("on_tokens", "top_log_probs") if name in settings}
    sampling = SamplingParams(**{"max_tokens": 12, "seed": 3, **settings})
    request = Request(prompt_ids=subject.tokenizer.encode(text), sampling=sampling, session=session, **parts)
    return asyncio.create_task(subject.engine.generate(request))


def test_every_token_has_a_log_probability_and_decodes_to_the_text(run) -> None:
    async def check(subject) -> None:
        reply = await ask(subject)
        assert 0 < len(reply.ids) == len(reply.log_probs) <= 12
        assert all(math.isfinite(value) and value <= 0 for value in reply.log_probs)
        assert reply.text == subject.tokenizer.text_of(reply.ids)
        assert reply.policy_version == subject.engine.policy_version == 0
        assert reply.latency_s >= 0 and reply.prompt_ids is None and reply.top_log_probs == ()

    run(check)


def test_streamed_tokens_equal_the_completion(run) -> None:
    async def check(subject) -> None:
        received_tokens, plain = ReceivedTokens(), await ask(subject)
        task = ask(subject, on_tokens=received_tokens)
        reply = await task
        assert (tuple(received_tokens.ids), tuple(received_tokens.log_probs)) == (reply.ids, reply.log_probs)
        assert received_tokens.calls > 1
        assert reply.ids == plain.ids

    run(check)


def test_max_tokens_limits_a_response(run) -> None:
    async def check(subject) -> None:
        whole = await ask(subject)
        reply = await ask(subject, max_tokens=2)
        assert len(reply.ids) == 2 and reply.finish_reason is FinishReason.LENGTH
        assert reply.ids == whole.ids[:2]

    run(check)


def test_an_end_token_closes_a_response_and_is_kept(run) -> None:
    async def check(subject) -> None:
        every = [await ask(subject, text=QUESTION, max_tokens=300, seed=seed) for seed in range(5)]
        stopped = [reply for reply in every if reply.finish_reason is FinishReason.STOP]
        assert stopped
        for reply in stopped:
            assert reply.ids[-1] in subject.tokenizer.end_ids
            assert not set(reply.ids[:-1]) & subject.tokenizer.end_ids
            assert reply.text == subject.tokenizer.decode(reply.ids[:-1])

    run(check)


def test_a_stop_string_closes_a_response_with_the_token_that_completes_it(run) -> None:
    async def check(subject) -> None:
        whole = await ask(subject)
        stop = subject.tokenizer.decode(whole.ids[2:4])
        received_tokens = ReceivedTokens()
        reply = await ask(subject, stop=("never said", stop), on_tokens=received_tokens)
        assert reply.finish_reason is FinishReason.STOP
        assert stop in reply.text and stop not in subject.tokenizer.decode(reply.ids[:-1])
        assert reply.ids == whole.ids[: len(reply.ids)] == tuple(received_tokens.ids)

    run(check)


def test_a_full_prompt_is_refused_and_a_response_ends_at_the_context_length(run) -> None:
    async def check(subject) -> None:
        context = subject.engine.context_length
        full = Request(prompt_ids=(70,) * context, sampling=SamplingParams(max_tokens=1), session="one")
        with pytest.raises(PromptTooLong, match=str(context)):
            await subject.engine.generate(full)
        nearly = Request(prompt_ids=(70,) * (context - 2), sampling=SamplingParams(max_tokens=50), session="two")
        assert len((await subject.engine.generate(nearly)).ids) <= 2

    run(check)


def test_calls_of_one_session_are_concurrent_and_independent(run) -> None:
    async def check(subject) -> None:
        order: list[int] = []
        received_tokens = [ReceivedTokens() for _ in range(4)]

        def callback(number: int):
            def on_tokens(ids: Sequence[int], log_probs: Sequence[float]) -> None:
                order.append(number)
                received_tokens[number](ids, log_probs)

            return on_tokens

        reply = await asyncio.gather(*[ask(subject, seed=seed, on_tokens=callback(seed)) for seed in range(4)])
        assert [tuple(one.ids) for one in received_tokens] == [one.ids for one in reply]
        if any(len(one.ids) > 2 for one in reply[1:]):
            assert order != sorted(order), "one waited for another"
        alone = [await ask(subject, session=f"alone {seed}", seed=seed) for seed in range(4)]
        assert [one.ids for one in reply] == [one.ids for one in alone]

    run(check)


def test_a_seed_determines_the_response(run) -> None:
    async def check(subject) -> None:
        if subject.seeded:
            reply = [(await ask(subject, session=str(place), seed=seed)).ids for place, seed in enumerate((7, 7, 8, 9))]
            assert reply[0] == reply[1]
            assert len(set(reply)) > 1

    run(check)


def test_top_log_probabilities_are_sorted_and_match_the_sampled_token(run) -> None:
    async def check(subject) -> None:
        reply = await ask(subject, top_log_probs=3, max_tokens=6)
        assert len(reply.top_log_probs) == len(reply.ids)
        for token, log_prob, top in zip(reply.ids, reply.log_probs, reply.top_log_probs, strict=True):
            assert len(top) == 3 and [value for _, value in top] == sorted((value for _, value in top), reverse=True)
            known = dict(top)
            assert known[token] == log_prob if token in known else log_prob <= top[-1][1]

    run(check)


def test_a_raising_stream_callback_fails_only_its_call(run) -> None:
    def broken(ids: Sequence[int], log_probs: Sequence[float]) -> None:
        raise ZeroDivisionError("in the callback")

    async def check(subject) -> None:
        if not subject.waits:
            return
        failed, reply = await asyncio.gather(
            ask(subject, on_tokens=broken, seed=1), ask(subject, seed=2), return_exceptions=True
        )
        assert isinstance(failed, ZeroDivisionError)
        assert isinstance(reply, Completion) and reply.ids == (await ask(subject, seed=2)).ids

    run(check)


def test_a_cancelled_call_streams_no_more_and_delays_no_other(run) -> None:
    async def check(subject) -> None:
        if not subject.waits:
            return
        received_tokens, steady = ReceivedTokens(), ask(subject, seed=2)
        given_up = ask(subject, on_tokens=received_tokens, seed=11, max_tokens=400, text="Which city has more people?")
        while not received_tokens.calls and not given_up.done():
            await asyncio.sleep(0.001)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        calls = received_tokens.calls
        async with subject.engine.exclusive():
            assert steady.done()
        assert (await ask(subject, seed=2)).ids == (await steady).ids
        assert received_tokens.calls == calls

    run(check)


def test_weight_updates_wait_for_running_calls_and_block_new_ones(run) -> None:
    async def check(subject) -> None:
        if not subject.waits:
            return
        first = ask(subject)
        await asyncio.sleep(0.005)
        async with subject.engine.exclusive():
            assert first.done()
            received_tokens = ReceivedTokens()
            second = ask(subject, on_tokens=received_tokens)
            await asyncio.sleep(0.05)
            assert not received_tokens.calls and not second.done()
        assert (await second).ids == (await first).ids

    run(check)


def test_a_policy_engine_counts_tokens_and_nests_exclusive_use(run) -> None:
    async def check(subject) -> None:
        if not subject.waits:
            return
        engine = subject.engine
        assert isinstance(engine, PolicyEngine)
        sampled = engine.tokens_sampled
        answer = await ask(subject)
        assert engine.tokens_sampled == sampled + len(answer.ids) and engine.tokens_prefilled > 0
        async with engine.exclusive():
            async with engine.exclusive():
                pass
            waiting = ask(subject, session="two")
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting

    run(check)


def test_a_policy_engine_loads_weights_between_calls(run, request, make_policy, tmp_path: Path) -> None:
    if "real" in request.node.name:
        pytest.skip("needs an adapter of the served model, see test_vllm_real.py")
    decoder = make_policy().decoder
    rank, alpha = decoder.adapter_rank, decoder.adapter_alpha
    save_adapter(decoder.adapters(), tmp_path / "a", rank=rank, alpha=alpha, base="tiny")

    async def check(subject) -> None:
        if not subject.waits:
            return
        engine = subject.engine
        before = ask(subject)
        await asyncio.sleep(0.005)
        assert engine.capabilities.adapters
        async with engine.exclusive():
            await engine.load_weights(Publication(tmp_path / "a", 3, "planner"))
        assert before.done() and (await before).policy_version == 0
        after = await ask(subject)
        assert (after.policy_version, after.adapter) == (engine.policy_version, engine.adapter) == (3, "planner")
        if not engine.capabilities.full:
            with pytest.raises(Unsupported, match="LoRA"):
                await engine.load_weights(Publication(tmp_path, 4))
            assert engine.policy_version == 3

    run(check)
