"""Calls of one session run concurrently, and each conversation reuses its own cache."""

from __future__ import annotations

import asyncio

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.sampling import SamplingParams
from midstream.engines.base import Completion, Request
from midstream.engines.torch.slots import SlotAssignment, Slots
from midstream.learn.model.log_probs import TokenSequence, score

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.0}


def largest_difference(policy, prompt: tuple[int, ...], reply: Completion) -> float:
    found = score(policy.decoder, [TokenSequence(prompt, reply.ids)]).log_probs.detach()
    return float((found - torch.tensor(reply.log_probs)).abs().max())


async def together(policy, prompts, session: str = "one", max_tokens: int = 8, first_seed: int = 0) -> list[Completion]:
    requests = [
        Request(
            prompt_ids=prompt, session=session, sampling=SamplingParams(max_tokens=max_tokens, seed=first_seed + at)
        )
        for at, prompt in enumerate(prompts)
    ]
    return await asyncio.gather(*[policy.engine.generate(request) for request in requests])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_samples_of_one_prompt_in_one_session_are_batched(make_policy, dtype, deterministic) -> None:
    policy = make_policy(dtype, deterministic=deterministic)
    prompt = policy.tokenizer.encode("How many are there?")
    rows: list[int] = []
    advance = policy.engine._advance

    def noted(admitted) -> None:
        rows.append(len(admitted or policy.engine._active))
        advance(admitted)

    policy.engine._advance = noted
    reply = asyncio.run(together(policy, [prompt] * 4))
    assert rows[0] == 4 and sum(rows) == sum(len(one.ids) for one in reply)
    assert policy.engine.tokens_prefilled == len(prompt)
    for one in reply:
        assert largest_difference(policy, prompt, one) <= TOLERANCE[dtype]
    apart = [asyncio.run(together(policy, [prompt], first_seed=at, session=f"alone {at}")) for at in range(4)]
    assert [one.ids for one in reply] == [one.ids for (one,) in apart]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_samples_that_extend_a_conversation_compute_only_new_tokens(make_policy, dtype) -> None:
    policy = make_policy(dtype)
    encode = policy.tokenizer.encode
    prompt = encode("How many are there?")

    async def go() -> tuple[tuple[int, ...], list[Completion]]:
        (first,) = await together(policy, [prompt])
        longer = (*prompt, *first.ids, *encode(" and how much?"))
        computed = policy.engine.tokens_prefilled
        reply = await together(policy, [longer] * 3)
        new = len(longer) - (len(prompt) + len(first.ids) - 1)
        assert policy.engine.tokens_prefilled - computed == new
        return longer, reply

    longer, reply = asyncio.run(go())
    for one in reply:
        assert largest_difference(policy, longer, one) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sub_agents_of_one_session_extend_their_own_conversations(make_policy, dtype) -> None:
    policy = make_policy(dtype)
    encode = policy.tokenizer.encode

    async def go() -> None:
        prompts = [encode(f"Agent {name}: what is the capital?") for name in "abc"]
        reply = await together(policy, prompts)
        longer = [(*prompt, *one.ids, *encode(" So?")) for prompt, one in zip(prompts, reply, strict=True)]
        computed = policy.engine.tokens_prefilled
        again = await together(policy, longer[::-1])
        new = sum(len(long) - len(p) - len(one.ids) + 1 for long, p, one in zip(longer, prompts, reply, strict=True))
        assert policy.engine.tokens_prefilled - computed == new
        for prompt, one in zip(longer[::-1], again, strict=True):
            assert largest_difference(policy, prompt, one) <= TOLERANCE[dtype]

    asyncio.run(go())


def test_more_calls_of_a_session_than_slots_are_all_answered(make_policy) -> None:
    policy = make_policy(slots=2)
    prompt = policy.tokenizer.encode("How many are there?")

    async def go() -> list[Completion]:
        async with asyncio.timeout(60):
            crowd = await asyncio.gather(together(policy, [prompt] * 5), together(policy, [prompt], session="other"))
        return crowd[0]

    alone = [asyncio.run(together(policy, [prompt], first_seed=at))[0].ids for at in range(5)]
    assert [one.ids for one in asyncio.run(go())] == alone


def test_a_session_that_left_holds_no_memory_even_during_a_call(make_policy) -> None:
    policy = make_policy()
    engine, prompt = policy.engine, policy.tokenizer.encode("How many are there?")

    async def go() -> None:
        calls = asyncio.create_task(together(policy, [prompt] * 3, max_tokens=30))
        await asyncio.sleep(0.02)
        engine.leave("one")
        assert [len(one.ids) > 0 for one in await calls] == [True] * 3

    asyncio.run(go())
    assert len(engine._slots) == 0
    assert engine._cached._cache.capacity == 0


turns = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["", "planner"]),
        st.lists(st.integers(0, 2), min_size=1, max_size=4),
        st.sampled_from(["keep", "drop", "leave", "run"]),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 4), turns=turns)
def test_no_slot_serves_two_calls_and_its_cache_is_a_prefix_of_the_prompt(count: int, turns) -> None:
    slots = Slots(count)
    running: list[SlotAssignment] = []
    for session, adapter, prompt, then in turns:
        (place,) = slots.assign([((session, adapter), prompt)])
        assert (place is None) == (len(running) == count), "a call waits only while every slot is busy"
        if place is None:
            slots.done(running.pop(0).slot, keep=True)
            continue
        assert all(place.slot is not other.slot for other in running)
        assert 0 <= place.slot.index < count
        if place.source is not None:
            held = place.source.tokens
            assert 0 < len(held) < len(prompt) and prompt[: len(held)] == held
            assert place.source.owner == (session, adapter)
        place.slot.tokens = list(prompt)
        running.append(place)
        if then == "leave":
            slots.leave(session)
        if then != "run":
            running.remove(place)
            slots.done(place.slot, keep=then == "keep")
    for place in running:
        slots.done(place.slot, keep=True)
    for session in "abc":
        slots.leave(session)
    assert len(slots) == 0
