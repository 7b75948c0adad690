"""Several adapters on one base model in one engine: batches mix them, and each call is as if it were alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from midstream.core.errors import EngineError, ModelError
from midstream.core.sampling import SamplingParams
from midstream.engines.base import Completion, Request
from midstream.engines.publication import Publication
from midstream.engines.torch.decoder import Decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.engines.torch.lora import read_adapter_shape
from midstream.learn.model.log_probs import TokenSequence, score


def add(decoder: Decoder, name: str, seed: int, size: float = 0.2) -> None:
    """Add an adapter that is not zero."""
    decoder.add_adapters(4, 8.0, seed=seed, name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in decoder.adapters(name).values():
            for up in adapter.up:
                up.normal_(0, size, generator=generator)


def call(engine: TorchEngine, prompt: Sequence[int], session: str, adapter: str = "") -> asyncio.Task[Completion]:
    sampling = SamplingParams(max_tokens=6, seed=sum(map(ord, session)))
    request = Request(prompt_ids=tuple(prompt), sampling=sampling, session=session, adapter=adapter)
    return asyncio.ensure_future(engine.generate(request))


def difference(decoder: Decoder, prompt: Sequence[int], completion: Completion, adapter: str) -> float:
    """Largest difference of the engine's log-probabilities from the learner's with `adapter`."""
    sequence = TokenSequence(tuple(prompt), completion.ids, adapter=adapter)
    return float((score(decoder, [sequence]).log_probs.detach() - torch.tensor(completion.log_probs)).abs().max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_of_mixed_adapters_gives_each_call_what_it_gets_alone(make_policy, tiny_tokenizer, dtype: str) -> None:
    policy = make_policy(dtype, numerics="exact")
    decoder = policy.decoder
    add(decoder, "solver.v2", 3)
    names = ("policy", "solver.v2", "policy", "solver.v2", "")
    # Two calls with the same prompt, and prompts that share a beginning, under different adapters.
    prompts = [tiny_tokenizer.encode(f"What is {number} plus 7?" + " so" * number) for number in (1, 1, 2, 3, 3)]

    async def together() -> list[Completion]:
        engine = TorchEngine(decoder, tiny_tokenizer)
        calls = zip(prompts, names, strict=True)
        return await asyncio.gather(*[call(engine, p, f"s{n}", name) for n, (p, name) in enumerate(calls)])

    async def alone() -> list[Completion]:
        return [
            await call(TorchEngine(decoder, tiny_tokenizer), prompt, f"s{n}", name)
            for n, (prompt, name) in enumerate(zip(prompts, names, strict=True))
        ]

    mixed = asyncio.run(together())
    if dtype == "float32":
        assert [(one.ids, one.log_probs) for one in mixed] == [(one.ids, one.log_probs) for one in asyncio.run(alone())]
    assert [one.adapter for one in mixed] == ["policy", "solver.v2", "policy", "solver.v2", "policy"]
    for prompt, name, one in zip(prompts, names, mixed, strict=True):
        assert difference(decoder, prompt, one, name) == 0
        assert difference(decoder, prompt, one, "solver.v2" if name != "solver.v2" else "policy") > 0.01


def test_a_session_that_changes_its_adapter_computes_its_history_again(make_policy, tiny_tokenizer) -> None:
    policy = make_policy(numerics="exact")
    decoder, engine = policy.decoder, policy.engine
    add(decoder, "solver", 3)
    prompt = tiny_tokenizer.encode("The capital of France is")

    async def turns() -> list[tuple[tuple[int, ...], Completion, str]]:
        done: list[tuple[tuple[int, ...], Completion, str]] = []
        history = tuple(prompt)
        for adapter in ("policy", "solver", "policy", "solver"):
            one = await call(engine, history, "a", adapter)
            done.append((history, one, adapter))
            history = (*history, *one.ids, *tiny_tokenizer.encode(" and"))
        return done

    held = asyncio.run(turns())
    assert all(difference(decoder, *turn) == 0 for turn in held)
    # The third call continues what the first had computed with its adapter.
    assert engine.tokens_prefilled < sum(len(history) for history, _, _ in held)


def test_weights_are_loaded_by_name_and_others_stay(make_policy, tiny_tokenizer, tmp_path: Path) -> None:
    source = make_policy(rank=0).decoder
    for name, seed in (("planner", 3), ("solver", 4)):
        add(source, name, seed)
        source.save_adapter(tmp_path / name, "tiny", name)
    add(source, "again", 5)
    source.save_adapter(tmp_path / "again", "tiny", "again")
    engine = make_policy(rank=0).engine
    prompt = tiny_tokenizer.encode("The capital of France is")

    async def act() -> None:
        for version, name in ((3, "planner"), (5, "solver")):
            await engine.load_weights(Publication(tmp_path / name, version, name))
        assert engine.decoder.adapter_names == ("planner", "solver") and engine.policy_version == 5
        for adapter, version in (("planner", 3), ("solver", 5), ("", 5)):
            one = await call(engine, prompt, "a", adapter)
            assert (one.adapter, one.policy_version) == (adapter or "solver", version)
            assert difference(source, prompt, one, one.adapter) < 1e-5
        # A resumed run may publish the same version again with other weights.
        await engine.load_weights(Publication(tmp_path / "again", 5, "solver", "another uid"))
        one = await call(engine, prompt, "a", "solver")
        assert difference(source, prompt, one, "again") < 1e-5 < difference(source, prompt, one, "solver")
        with pytest.raises(EngineError, match="has no adapter 'critic'; it has: planner, solver"):
            await call(engine, prompt, "a", "critic")

    asyncio.run(act())


def test_a_call_that_waits_for_new_weights_is_sampled_with_them(make_policy, tiny_tokenizer, tmp_path: Path) -> None:
    source = make_policy(rank=0).decoder
    add(source, "planner", 3)
    source.save_adapter(tmp_path, "tiny", "planner")
    engine = make_policy(rank=0).engine
    prompt = tiny_tokenizer.encode("The capital of France is")

    async def act() -> Completion:
        async with engine.exclusive():
            waiting = call(engine, prompt, "a")
            await asyncio.sleep(0)
            await engine.load_weights(Publication(tmp_path, 3, "planner"))
        return await waiting

    one = asyncio.run(act())
    assert (one.adapter, one.policy_version) == ("planner", 3)
    assert difference(source, prompt, one, "planner") < 1e-5


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(make_policy, tmp_path: Path) -> None:
    source = make_policy(rank=0).decoder
    add(source, "planner", 3)
    source.save_adapter(tmp_path, "tiny", "planner")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"layers.0.", b"layers.7."))
    assert read_adapter_shape(tmp_path).rank == 4
    policy = make_policy(rank=4)
    with pytest.raises(ModelError, match="does not fit"):
        asyncio.run(policy.engine.load_weights(Publication(tmp_path, 1, "planner")))
    assert policy.decoder.adapter_names == ("policy",) and policy.engine.adapter == "policy"
    assert not any("adapter_1" in name for name, _ in policy.decoder.named_parameters())
