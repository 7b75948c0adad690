"""The engine's log-probabilities equal the learner's bit for bit, however a token was computed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import torch

from midstream.core.sampling import SamplingParams
from midstream.engines.base import Completion, Request
from midstream.learn.model.log_probs import TokenSequence, score

Turn = tuple[tuple[int, ...], Completion]


def converse(policy, sessions: Sequence[str], temperature: float = 1.0, turns: int = 2) -> dict[str, list[Turn]]:
    """Run concurrent conversations with their own seeds; later turns extend the sampled replies."""

    async def one(session: str) -> list[Turn]:
        number = int(session.split()[1])
        prompt = policy.tokenizer.render([{"role": "user", "content": f"What is {number} plus 7?" + " so" * number}])
        done: list[Turn] = []
        for turn in range(turns):
            sampling = SamplingParams(max_tokens=6 + number % 4, temperature=temperature, seed=100 * number + turn)
            completion = await policy.engine.generate(Request(prompt_ids=prompt, sampling=sampling, session=session))
            done.append((prompt, completion))
            prompt = (*prompt, *completion.ids, *policy.tokenizer.encode("<|im_end|>\n<|im_start|>user\nAnd now?"))
        policy.engine.leave(session)
        return done

    async def all_of_them() -> list[list[Turn]]:
        for session in sessions:
            policy.engine.join(session)
        return await asyncio.gather(*[one(session) for session in sessions])

    return dict(zip(sessions, asyncio.run(all_of_them()), strict=True))


def largest_difference(policy, turns: Sequence[Turn], temperature: float = 1.0) -> float:
    sequences = [TokenSequence(prompt, completion.ids, temperature) for prompt, completion in turns]
    reported = torch.tensor([value for _, completion in turns for value in completion.log_probs])
    return float((score(policy.decoder, sequences).log_probs.detach() - reported).abs().max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_learner_and_engine_log_probabilities_are_identical(make_policy, dtype, temperature) -> None:
    policy = make_policy(dtype, numerics="exact")
    held = converse(policy, ["s 1", "s 2", "s 5"], temperature)
    turns = [turn for conversation in held.values() for turn in conversation]
    assert largest_difference(policy, turns, temperature) == 0
    # Alone, no prefix is shared, and a second turn is computed completely, while the engine extended its cache.
    assert max(largest_difference(policy, [turn], temperature) for turn in turns) == 0
    other = 0.7 if temperature == 1.0 else 1.0
    assert largest_difference(policy, turns, other) > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_turn_computes_only_new_tokens(make_policy, dtype) -> None:
    policy = make_policy(dtype, numerics="exact")
    ((first, answer), (second, _)) = converse(policy, ["s 3"])["s 3"]
    assert second[: len(first) + len(answer.ids)] == first + answer.ids
    # The last sampled token has not been computed yet: it is part of the new prompt.
    assert policy.engine.tokens_prefilled == len(first) + len(second) - (len(first) + len(answer.ids) - 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identical_conversations_are_computed_once(make_policy, dtype) -> None:
    one, three = (
        make_policy(dtype, numerics="exact", deterministic=True),
        make_policy(dtype, numerics="exact", deterministic=True),
    )
    alone = converse(one, ["s 3"], turns=3)["s 3"]
    alike = converse(three, ["s 3 a", "s 3 b", "s 3 c"], turns=3)
    assert three.engine.tokens_prefilled == one.engine.tokens_prefilled
    for turns in alike.values():
        assert [c.ids for _, c in turns] == [c.ids for _, c in alone]
        assert largest_difference(three, turns) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_call_gives_the_same_result_alone_and_in_a_batch_of_sixteen(make_policy, dtype) -> None:
    policy = make_policy(dtype, numerics="exact")
    alone = converse(policy, ["s 2"])["s 2"]
    crowded = converse(policy, [f"s {number}" for number in range(17)])["s 2"]
    for (prompt, one), (same_prompt, other) in zip(alone, crowded, strict=True):
        assert (prompt, one.ids, one.text) == (same_prompt, other.ids, other.text)
        gap = max(abs(a - b) for a, b in zip(one.log_probs, other.log_probs, strict=True))
        assert gap == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fewer_slots_than_conversations_give_the_same_results(make_policy, dtype) -> None:
    sessions = [f"s {number}" for number in range(5)]
    wide, narrow = make_policy(dtype, numerics="exact"), make_policy(dtype, numerics="exact", slots=2)
    ample, scarce = converse(wide, sessions), converse(narrow, sessions)
    for session in sessions:
        assert [c.ids for _, c in ample[session]] == [c.ids for _, c in scarce[session]]
        assert largest_difference(narrow, scarce[session]) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_caches_of_old_weights_are_not_used_after_an_update(make_policy, dtype) -> None:
    policy = make_policy(dtype, numerics="exact")
    engine, prompt = policy.engine, policy.tokenizer.render([{"role": "user", "content": "Say something."}])

    async def go() -> tuple[Completion, Completion, tuple[int, ...]]:
        engine.join("a")
        sampling = SamplingParams(max_tokens=8, seed=1)
        before = await engine.generate(Request(prompt_ids=prompt, sampling=sampling, session="a"))
        async with engine.exclusive():
            with torch.no_grad():
                for adapter in policy.decoder.adapters().values():
                    for up in adapter.up:
                        up.mul_(-3)
            policy.decoder.version += 1
        longer = (*prompt, *before.ids, *policy.tokenizer.encode(" and"))
        after = await engine.generate(Request(prompt_ids=longer, sampling=sampling, session="a"))
        return before, after, longer

    before, after, longer = asyncio.run(go())
    assert (before.policy_version, after.policy_version) == (0, 1)
    assert largest_difference(policy, [(longer, after)]) == 0
    assert largest_difference(policy, [(prompt, before)]) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_that_does_not_extend_the_last_one_is_recomputed(make_policy, dtype) -> None:
    policy = make_policy(dtype, numerics="exact")
    encode = policy.tokenizer.encode
    story = encode("The query is the question of the user.")
    prompts = [story, (*encode("Another"), *story, *story), story[:4], story[:4], (*story[:4], *encode(" and"))]

    async def go() -> list[Turn]:
        turns: list[Turn] = []
        for place, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=5, seed=place)
            request = Request(prompt_ids=prompt, sampling=sampling, session="a")
            turns.append((prompt, await policy.engine.generate(request)))
        return turns

    assert largest_difference(policy, asyncio.run(go())) == 0


def test_an_update_waits_for_running_calls_and_new_calls_wait_for_it(make_policy) -> None:
    policy = make_policy(numerics="exact")
    engine, prompt = policy.engine, policy.tokenizer.encode("one two three")

    async def go() -> list[Completion]:
        def call(session: str) -> asyncio.Task[Completion]:
            sampling = SamplingParams(max_tokens=12, seed=4)
            return asyncio.create_task(engine.generate(Request(prompt_ids=prompt, sampling=sampling, session=session)))

        first = call("a")
        await asyncio.sleep(0.01)
        async with engine.exclusive():
            assert first.done()
            second = call("b")
            await asyncio.sleep(0.01)
            assert not second.done()
            policy.decoder.version += 1
        return [await first, await second]

    first, second = asyncio.run(go())
    assert (first.policy_version, second.policy_version) == (0, 1)
    assert first.ids == second.ids


def test_the_frozen_engine_samples_without_the_adapter(make_policy, tiny_tokenizer) -> None:
    from midstream.engines.torch.engine import TorchEngine

    policy = make_policy(numerics="exact")
    frozen = TorchEngine(policy.decoder, tiny_tokenizer, name="frozen", adapter=None)
    prompt = tiny_tokenizer.encode("The capital of France is")
    sampling = SamplingParams(max_tokens=6, seed=3)
    reply = asyncio.run(frozen.generate(Request(prompt_ids=prompt, sampling=sampling, session="a")))
    sequence = [TokenSequence(prompt, reply.ids)]
    with torch.no_grad():
        base = score(policy.decoder, sequence, adapter=False).log_probs
        adapted = score(policy.decoder, sequence).log_probs
    assert (base - torch.tensor(reply.log_probs)).abs().max() == 0
    assert (adapted - base).abs().max() > 0.01
    policy.decoder.version += 1
    assert frozen.policy_version == 0
