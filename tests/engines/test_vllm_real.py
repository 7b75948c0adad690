"""A real vLLM server returns the tokens and log-probabilities of Midstream's own decoder, adapters included."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import jsonschema
import pytest
import torch

from midstream.core.errors import EngineError, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, FinishReason
from midstream.engines.base import Completion, Request
from midstream.engines.publication import Publication
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.lora import save_adapter
from midstream.engines.vllm import VLLMEngine
from midstream.learn.model.log_probs import TokenSequence, score

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

TOLERANCE = 1e-3
ASKED = [{"role": "user", "content": "Name three animals that live in the sea, and say where."}]
T = TypeVar("T")


@pytest.fixture(scope="module", params=["processed_logprobs", "raw_logprobs"])
def real_vllm(request, start_real_vllm):
    return start_real_vllm(request.param)


@pytest.fixture(scope="module")
def decoder(real_vllm) -> Decoder:
    return load_decoder(real_vllm.folder, torch.float32)


def request_of(real, **settings: Any) -> Request:
    parts = {name: settings.pop(name) for name in list(settings) if name not in SamplingParams.__dataclass_fields__}
    sampling = SamplingParams(**{"max_tokens": 24, "seed": 3, **settings})
    return Request(**{"prompt_ids": real.tokenizer.render(ASKED), "sampling": sampling, "session": "one", **parts})


def use(real, act: Callable[[VLLMEngine], Awaitable[T]]) -> T:
    async def go() -> T:
        engine = await VLLMEngine.connect(real.url, real.tokenizer)
        try:
            return await act(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


def ask(real, **settings: Any) -> Completion:
    return use(real, lambda engine: engine.generate(request_of(real, **settings)))


def largest_difference(decoder: Decoder, real, reply: Completion, temperature: float = 1.0) -> float:
    found = score(decoder, [TokenSequence(real.tokenizer.render(ASKED), reply.ids, temperature)]).log_probs.detach()
    return float((found - torch.tensor(reply.log_probs)).abs().max())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_p": 0.5},
        {"top_k": 3, "min_p": 0.05},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"constraint": Constraint(kind="regex", grammar="[a-z]{3,8} [0-9]{2}")},
    ],
    ids=str,
)
def test_vllm_log_probabilities_equal_our_decoders(real_vllm, decoder, settings) -> None:
    temperature = settings.get("temperature") or 1.0
    if real_vllm.mode == "raw_logprobs" and temperature != 1:
        with pytest.raises(Unsupported, match="--logprobs-mode processed_logprobs"):
            ask(real_vllm, **settings)
        return
    reply = ask(real_vllm, **settings)
    assert len(reply.ids) > 3
    assert largest_difference(decoder, real_vllm, reply, temperature) < TOLERANCE


def test_greedy_tokens_equal_our_engines(real_vllm, decoder) -> None:
    from midstream.engines.torch.engine import TorchEngine

    reply = ask(real_vllm, temperature=0.0, max_tokens=60)
    own = TorchEngine(decoder, real_vllm.tokenizer)
    assert asyncio.run(own.generate(request_of(real_vllm, temperature=0.0, max_tokens=60))).ids == reply.ids


@pytest.mark.parametrize("stream", [False, True])
def test_end_tokens_and_stop_strings_close_a_response_and_stay_in_it(real_vllm, stream: bool) -> None:
    received_tokens: list[int] = []
    parts = {"on_tokens": lambda ids, log_probs: received_tokens.extend(ids)} if stream else {}
    whole = ask(real_vllm, temperature=0.0, max_tokens=200, **parts)
    assert whole.finish_reason is FinishReason.STOP and whole.ids[-1] in real_vllm.tokenizer.end_ids
    stop = whole.text[20:23]
    reply = ask(real_vllm, temperature=0.0, max_tokens=200, stop=(stop,))
    assert reply.finish_reason is FinishReason.STOP
    assert stop in reply.text and stop not in real_vllm.tokenizer.decode(reply.ids[:-1])
    assert reply.ids == whole.ids[: len(reply.ids)]
    assert tuple(received_tokens) == (whole.ids if stream else ())


SCHEMA = {
    "type": "object",
    "properties": {"animal": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "maximum": 8}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


def test_every_kind_of_constraint_is_satisfied(real_vllm) -> None:
    # Without further constraints, so small a model may write white space until the limit.
    prompt_ids = real_vllm.tokenizer.render([{"role": "user", "content": 'Answer with {"animal": "cat", "legs": 4}.'}])
    schema = Constraint(kind="json_schema", grammar=json.dumps(SCHEMA))
    reply = ask(real_vllm, prompt_ids=prompt_ids, constraint=schema, temperature=0.0, max_tokens=60)
    jsonschema.validate(json.loads(reply.text), SCHEMA)
    assert re.fullmatch(
        r"[0-9]{4}-[0-9]{2}", ask(real_vllm, constraint=Constraint(kind="regex", grammar=r"[0-9]{4}-[0-9]{2}")).text
    )
    lark = Constraint(kind="lark", grammar='start: ("cat" | "dog") " " NUMBER\nNUMBER: /[0-9]{2}/')
    assert re.fullmatch(r"(cat|dog) [0-9]{2}", ask(real_vllm, constraint=lark).text)


def stirred(folder: Path, seed: int) -> Decoder:
    decoder = load_decoder(folder, torch.float32)
    decoder.add_adapters(4, 8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in decoder.adapters().values():
            for up in adapter.up:
                up.normal_(0, 0.02, generator=generator)
    return decoder


def test_adapters_swap_under_one_name_without_stale_caches(real_vllm, tmp_path: Path) -> None:
    versions = {version: stirred(real_vllm.folder, version) for version in (1, 2)}
    for version, decoder in versions.items():
        save_adapter(decoder.adapters(), tmp_path / str(version), rank=4, alpha=8.0, base=str(real_vllm.folder))

    async def act(engine: VLLMEngine) -> dict[int, Completion]:
        reply = {0: await engine.generate(request_of(real_vllm))}
        for version in versions:
            await engine.load_weights(Publication(tmp_path / str(version), version))
            reply[version] = await engine.generate(request_of(real_vllm))
        # The same folder with other weights: vLLM itself would not distinguish them.
        save_adapter(versions[1].adapters(), tmp_path / "2", rank=4, alpha=8.0, base=str(real_vllm.folder))
        await engine.load_weights(Publication(tmp_path / "2", 3))
        reply[3] = await engine.generate(request_of(real_vllm))
        with pytest.raises(Unsupported, match="LoRA adapters only"):
            await engine.load_weights(Publication(tmp_path / "nowhere", 4))
        assert (await engine.generate(request_of(real_vllm))).policy_version == 3
        return reply

    reply = use(real_vllm, act)
    decoders = {**versions, 3: versions[1]}
    for version, decoder in decoders.items():
        assert reply[version].policy_version == version
        assert largest_difference(decoder, real_vllm, reply[version]) < TOLERANCE
        assert largest_difference(decoder, real_vllm, reply[0]) > 0.05
    assert largest_difference(versions[2], real_vllm, reply[1]) > 0.05


def test_a_text_model_refuses_images(real_vllm) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(EngineError, match="not a multimodal model"):
        ask(real_vllm, messages=({"role": "user", "content": [image]},))


def test_several_adapters_answer_in_one_batch(real_vllm, tmp_path: Path) -> None:
    decoders = {name: stirred(real_vllm.folder, seed) for name, seed in (("planner", 5), ("solver", 6))}
    for name, decoder in decoders.items():
        save_adapter(decoder.adapters(), tmp_path / name, rank=4, alpha=8.0, base=str(real_vllm.folder))

    async def act(engine: VLLMEngine) -> dict[str, Completion]:
        for version, name in enumerate(decoders, 1):
            await engine.load_weights(Publication(tmp_path / name, version, name))
        # The one loaded last answers requests that name none.
        asked = [*decoders, "", "planner"]
        calls = [engine.generate(request_of(real_vllm, session=f"s{n}", adapter=one)) for n, one in enumerate(asked)]
        planner, solver, default, again = await asyncio.gather(*calls)
        assert (default.adapter, again.adapter) == ("solver", "planner")
        assert largest_difference(decoders["solver"], real_vllm, default) < TOLERANCE
        return {"planner": planner, "solver": solver}

    reply = use(real_vllm, act)
    assert {name: (one.adapter, one.policy_version) for name, one in reply.items()} == {
        "planner": ("planner", 1),
        "solver": ("solver", 2),
    }
    for name, other in (("planner", "solver"), ("solver", "planner")):
        assert largest_difference(decoders[name], real_vllm, reply[name]) < TOLERANCE
        assert largest_difference(decoders[other], real_vllm, reply[name]) > 0.05
