"""The vLLM engine sends exact requests, rejects inconsistent responses, and swaps adapters between calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from midstream.core.errors import ConfigError, EngineError, EngineUnreachable, PromptTooLong, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint
from midstream.engines.base import Completion, Request
from midstream.engines.factory import EngineSettings, make_policy_engine
from midstream.engines.publication import Publication
from midstream.engines.vllm import VLLMEngine, server

PROMPT = (70, 71, 72)
IMAGE = ({"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}]},)
T = TypeVar("T")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FIRST_WAIT_S", 0.001)


def request_of(**settings: Any) -> Request:
    parts = {name: settings.pop(name) for name in list(settings) if name not in SamplingParams.__dataclass_fields__}
    sampling = SamplingParams(**{"max_tokens": 9, "seed": 3, **settings})
    return Request(**{"prompt_ids": PROMPT, "sampling": sampling, "session": "one", **parts})


def use(imitation, tokenizer, act: Callable[[VLLMEngine], Awaitable[T]], **settings: Any) -> T:
    """Run `act` with an engine connected to `imitation`, whose list of calls starts after connecting."""

    async def go() -> T:
        engine = await VLLMEngine.connect(imitation.url, tokenizer, **settings)
        imitation.asked.clear()
        try:
            async with asyncio.timeout(60):
                return await act(engine)
        finally:
            await engine.close()

    return asyncio.run(go())


def ask(imitation, tokenizer, **settings: Any) -> Completion:
    return use(imitation, tokenizer, lambda engine: engine.generate(request_of(**settings)))


def test_a_call_names_every_setting_and_asks_for_ids(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm()
    ask(
        imitation,
        tiny_tokenizer,
        **{"temperature": 1.0, "stop": ("\n",), "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2},
        presence_penalty=0.5,
        frequency_penalty=0.25,
    )
    asked = imitation.asked[0]
    assert asked.pop("cache_salt").isdigit()
    assert asked == {
        "path": "/v1/completions",
        "model": "base",
        "prompt": list(PROMPT),
        "max_tokens": 9,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repetition_penalty": 1.2,
        "stop": ["\n"],
        "stop_token_ids": sorted(tiny_tokenizer.end_ids),
        "skip_special_tokens": False,
        "seed": 3,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stream": False,
    }


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (Constraint(kind="json_schema", grammar='{"type": "null"}'), {"json": '{"type": "null"}'}),
        (Constraint(kind="regex", grammar="a+"), {"regex": "a+"}),
        (Constraint(kind="lark", grammar='start: "a"'), {"grammar": 'start: "a"'}),
    ],
)
def test_constraints_use_vllms_names(start_vllm, tiny_tokenizer, constraint, named) -> None:
    imitation = start_vllm()
    ask(imitation, tiny_tokenizer, constraint=constraint)
    assert imitation.asked[0]["structured_outputs"] == named


def test_constraints_unsupported_here_or_by_vllm_are_refused(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm()
    with pytest.raises(Unsupported, match="regular expression"):
        ask(imitation, tiny_tokenizer, constraint=Constraint(kind="regex", grammar="(a"))
    assert imitation.asked == []
    with pytest.raises(Unsupported, match=r"The grammar is not supported"):
        ask(imitation, tiny_tokenizer, constraint=Constraint(kind="regex", grammar="outlandish"))


TRUE_AT = {
    "processed_logprobs": [{}, {"temperature": 0.0, "top_k": 2}, {"temperature": 0.5}],
    "raw_logprobs": [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.1}],
}
SCORED = {
    "processed_logprobs": [{"top_k": 2}, {"temperature": 0.0, "presence_penalty": 1.0}, {"constraint": True}],
    "raw_logprobs": [{"constraint": True}, {"temperature": 0.0, "constraint": True}],
}


@pytest.mark.parametrize("mode", TRUE_AT)
@pytest.mark.parametrize("again", [False, True])
def test_log_probabilities_are_those_of_the_whole_vocabulary_at_the_temperature(
    start_vllm, tiny_tokenizer, mode: str, again: bool
) -> None:
    """Those reported by the server where they are right, else those it computes for the same tokens as a prompt."""
    imitation = start_vllm(mode=mode)
    for settings in (SCORED if again else TRUE_AT)[mode]:
        if "constraint" in settings:
            settings = {**settings, "constraint": Constraint(kind="regex", grammar=".*")}
        reply = ask(imitation, tiny_tokenizer, **settings)
        temperature = settings.get("temperature", 1.0) or 1.0
        for place, (token, log_prob) in enumerate(zip(reply.ids, reply.log_probs, strict=True)):
            true = imitation.log_probs([*PROMPT, *reply.ids[:place]], temperature)
            assert log_prob == pytest.approx(true[token])
        assert not reply.over_allowed
        assert len(imitation.asked) == (2 if again else 1)


@pytest.mark.parametrize(
    ("mode", "settings", "says"),
    [
        ("processed_logprobs", {"temperature": 0.5, "top_p": 0.9}, "top_p"),
        ("processed_logprobs", {"temperature": 0.5, "presence_penalty": 1.0}, "penalties"),
        ("processed_logprobs", {"temperature": 0.5, "constraint": Constraint(kind="regex", grammar="a")}, "constraint"),
        ("processed_logprobs", {"messages": IMAGE, "top_k": 5}, "no images"),
        ("raw_logprobs", {"temperature": 0.5}, "--logprobs-mode processed_logprobs"),
        ("processed_logprobs", {"temperature": 0.001}, "no temperature below"),
    ],
)
def test_a_call_without_recoverable_log_probabilities_is_unsupported(
    start_vllm, tiny_tokenizer, mode, settings, says
) -> None:
    imitation = start_vllm(mode=mode)
    with pytest.raises(Unsupported, match=says):
        ask(imitation, tiny_tokenizer, **settings)
    assert imitation.asked == []


def test_a_server_that_reports_logits_is_refused(start_vllm, tiny_tokenizer, monkeypatch) -> None:
    imitation = start_vllm(mode="raw_logits")
    true = imitation.log_probs
    monkeypatch.setattr(
        imitation, "log_probs", lambda *asked: {token: value + 5 for token, value in true(*asked).items()}
    )
    with pytest.raises(ConfigError, match="reports logits"):
        ask(imitation, tiny_tokenizer)


def test_messages_with_images_are_sent_and_the_servers_prompt_is_recorded(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm()
    tools = ({"type": "function", "function": {"name": "look"}},)
    received_tokens: list[int] = []
    for stream in (None, lambda ids, log_probs: received_tokens.extend(ids)):
        reply = ask(imitation, tiny_tokenizer, messages=IMAGE, tools=tools, top_log_probs=2, on_tokens=stream)
        asked = imitation.asked[-1]
        assert asked["path"] == "/v1/chat/completions" and "prompt" not in asked
        assert asked["messages"] == list(IMAGE)
        assert asked["tools"] == list(tools) and asked["tool_choice"] == "none"
        assert reply.prompt_ids == tiny_tokenizer.encode(
            '[{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {}}]}]'
        )
        assert reply.prompt_ids is not None and len(reply.ids) == len(reply.log_probs) == len(reply.top_log_probs)
        for place, top in enumerate(reply.top_log_probs):
            true = imitation.log_probs([*reply.prompt_ids, *reply.ids[:place]], 1.0)
            assert [value for _, value in top] == pytest.approx(sorted(true.values())[:-3:-1])
    assert tuple(received_tokens) == reply.ids


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["drop", "503", "429", "500"])
def test_an_unreachable_or_busy_server_is_retried_before_the_first_token(
    start_vllm, tiny_tokenizer, fault: str, stream: bool
) -> None:
    imitation = start_vllm()
    received_tokens: list[int] = []
    parts = {"on_tokens": lambda ids, log_probs: received_tokens.extend(ids)} if stream else {}

    async def act(engine: VLLMEngine) -> Completion:
        imitation.faults = [fault, fault]
        return await engine.generate(request_of(**parts))

    reply = use(imitation, tiny_tokenizer, act)
    assert len(imitation.asked) == 3 and reply.ids
    assert tuple(received_tokens) == (reply.ids if stream else ())


def test_a_server_that_stays_unreachable_is_an_error_with_the_cause(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm()

    async def act(engine: VLLMEngine) -> None:
        imitation.faults = ["503"] * 9
        with pytest.raises(EngineUnreachable, match="after 3 tries; last: HTTP 503: fault 503"):
            await engine.generate(request_of())

    use(imitation, tiny_tokenizer, act, retries=2)
    with pytest.raises(EngineUnreachable, match="ConnectError"):
        asyncio.run(VLLMEngine.connect("http://127.0.0.1:9/v1", tiny_tokenizer, retries=0))


@pytest.mark.parametrize(("fault", "error"), [("die", EngineUnreachable), ("error", EngineError)])
def test_a_server_that_dies_mid_stream_fails_the_call_without_duplicate_tokens(
    start_vllm, tiny_tokenizer, fault, error
) -> None:
    imitation = start_vllm()
    received_tokens: list[int] = []

    async def act(engine: VLLMEngine) -> None:
        imitation.faults = [fault]
        with pytest.raises(error, match="mid-stream"):
            await engine.generate(request_of(on_tokens=lambda ids, log_probs: received_tokens.extend(ids)))
        assert (await engine.generate(request_of())).ids[: len(received_tokens)] == tuple(received_tokens)

    use(imitation, tiny_tokenizer, act)
    assert len(received_tokens) == 2 and len(imitation.asked) == 2


@pytest.mark.parametrize(
    ("fault", "says"), [("no ids", "0 token ids and 9 log-prob"), ("abort", "abort"), ("400", "HTTP 400: fault 400")]
)
def test_an_inconsistent_response_is_an_error(start_vllm, tiny_tokenizer, fault: str, says: str) -> None:
    imitation = start_vllm()

    async def act(engine: VLLMEngine) -> None:
        imitation.faults = [fault]
        with pytest.raises(EngineError, match=says):
            await engine.generate(request_of())

    use(imitation, tiny_tokenizer, act)
    assert len(imitation.asked) == 1


def test_a_prompt_too_long_is_an_error_wherever_it_is_rendered(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm(context_length=60)
    with pytest.raises(PromptTooLong, match="60"):
        ask(imitation, tiny_tokenizer, prompt_ids=(70,) * 60)
    assert imitation.asked == []
    with pytest.raises(PromptTooLong, match="maximum context length"):
        ask(imitation, tiny_tokenizer, messages=IMAGE, max_tokens=50)


def test_a_cancelled_call_is_cancelled_on_the_server(start_vllm, tiny_tokenizer) -> None:
    imitation = start_vllm(token_s=0.01)

    async def act(engine: VLLMEngine) -> None:
        received_tokens: list[int] = []
        request = request_of(max_tokens=400, seed=11, on_tokens=lambda ids, log_probs: received_tokens.extend(ids))
        call = asyncio.create_task(engine.generate(request))
        while not received_tokens:
            await asyncio.sleep(0.005)
        done = imitation.done
        call.cancel()
        while imitation.done == done:
            await asyncio.sleep(0.005)
        assert call.cancelled() and len(received_tokens) < 50

    use(imitation, tiny_tokenizer, act)


def publication(folder: Path, version: int, adapter: str = "policy") -> Publication:
    """One with the file by which an adapter is known."""
    folder.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    return Publication(folder, version, adapter, f"uid {version}")


def test_no_call_spans_two_adapters(start_vllm, tiny_tokenizer, tmp_path: Path) -> None:
    imitation = start_vllm(token_s=0.005)

    async def act(engine: VLLMEngine) -> None:
        before = asyncio.create_task(engine.generate(request_of(max_tokens=20, seed=1)))
        await asyncio.sleep(0.01)
        load = asyncio.create_task(engine.load_weights(publication(tmp_path / "7", 7)))
        await asyncio.sleep(0)
        after = asyncio.create_task(engine.generate(request_of()))
        said = [await one for one in (before, after)]
        assert [(one.policy_version, one.adapter) for one in said] == [(0, ""), (7, "policy")]
        await load
        await engine.load_weights(publication(tmp_path / "8", 8))
        assert engine.policy_version == (await engine.generate(request_of())).policy_version == 8

    use(imitation, tiny_tokenizer, act)
    loaded = [f"policy={tmp_path / version}" for version in ("7", "8")]
    assert imitation.loaded == [loaded[0], "reset", loaded[1], "reset"]
    # The salt keeps versions apart in the prefix cache.
    assert [one["model"] for one in imitation.asked] == ["base", "policy", "policy"]
    assert len({one["cache_salt"] for one in imitation.asked}) == 3


def test_adapters_have_names_and_a_republished_version_shares_no_cache(start_vllm, tiny_tokenizer, tmp_path) -> None:
    imitation = start_vllm()
    named = publication(tmp_path / "7", 7, "planner")

    async def act(engine: VLLMEngine) -> None:
        for one in (named, replace(named, uid="again")):
            await engine.load_weights(one)
            assert (await engine.generate(request_of())).adapter == engine.adapter == "planner"
        frozen = engine.frozen()
        said = await frozen.generate(request_of())
        assert (said.adapter, said.policy_version) == ("", 0)
        (tmp_path / "8").mkdir()
        (tmp_path / "8" / "adapter_config.json").touch()
        with pytest.raises(Unsupported, match="LoRA adapters only"):
            await engine.load_weights(Publication(tmp_path / "8", 8))
        with pytest.raises(Unsupported, match=r"policy\.adapter"):
            await engine.load_weights(replace(named, adapter="base"))

    use(imitation, tiny_tokenizer, act)
    assert [one["model"] for one in imitation.asked] == ["planner", "planner", "base"]
    assert len({one["cache_salt"] for one in imitation.asked}) == 3


def test_several_adapters_are_served_by_name_with_their_own_versions(start_vllm, tiny_tokenizer, tmp_path) -> None:
    imitation = start_vllm()

    async def act(engine: VLLMEngine) -> None:
        for version, name in ((7, "planner"), (8, "solver"), (9, "planner")):
            await engine.load_weights(publication(tmp_path / f"{version}", version, name))
        said = [await engine.generate(request_of(adapter=name)) for name in ("planner", "solver", "")]
        assert [(one.adapter, one.policy_version) for one in said] == [("planner", 9), ("solver", 8), ("planner", 9)]
        with pytest.raises(EngineError, match="has loaded no adapter 'critic'"):
            await engine.generate(request_of(adapter="critic"))

    use(imitation, tiny_tokenizer, act)
    assert [one["model"] for one in imitation.asked] == ["planner", "solver", "planner"]
    assert len({one["cache_salt"] for one in imitation.asked}) == 2


def test_an_api_key_is_sent_with_every_call(start_vllm, tiny_tokenizer, tiny_path, monkeypatch) -> None:
    imitation = start_vllm()
    monkeypatch.setenv("A_KEY", "sesame")
    settings = EngineSettings(model=str(tiny_path), engine=(imitation.url,), api_key_env="A_KEY")

    async def act() -> None:
        async with AsyncExitStack() as stack:
            engine = await make_policy_engine(settings, tiny_tokenizer, stack)
            await engine.generate(request_of())

    asyncio.run(act())
    assert imitation.keys == {"Bearer sesame"}


def test_an_adapter_that_fails_to_load_changes_nothing(start_vllm, tiny_tokenizer, tmp_path: Path) -> None:
    imitation = start_vllm(resets=False)

    async def act(engine: VLLMEngine) -> None:
        await engine.load_weights(publication(tmp_path, 1))  # a server outside development mode cannot be reset
        imitation.adapters = False
        with pytest.raises(EngineError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            await engine.load_weights(publication(tmp_path, 2))
        assert (await engine.generate(request_of())).policy_version == 1

    use(imitation, tiny_tokenizer, act)


def test_after_an_interrupted_load_nothing_is_sampled_until_one_succeeds(
    start_vllm, tiny_tokenizer, tmp_path: Path, monkeypatch
) -> None:
    imitation = start_vllm()

    async def act(engine: VLLMEngine) -> None:
        await engine.load_weights(publication(tmp_path, 1))
        with monkeypatch.context() as away:
            away.setattr(engine._server, "ask", _raises(EngineUnreachable("gone")))
            with pytest.raises(EngineUnreachable):
                await engine.load_weights(publication(tmp_path, 2))
        with pytest.raises(EngineError, match="weights are unknown"):
            await engine.generate(request_of())
        await engine.load_weights(publication(tmp_path, 3))
        assert (await engine.generate(request_of())).policy_version == 3

    use(imitation, tiny_tokenizer, act)


def _raises(error: Exception) -> Callable[..., Awaitable[None]]:
    async def ask(*_: Any) -> None:
        raise error

    return ask


def test_another_server_or_a_missing_model_is_a_config_error(start_vllm, chat_server, tiny_tokenizer) -> None:
    with pytest.raises(ConfigError, match="serves: base"):
        use(start_vllm(), tiny_tokenizer, lambda engine: engine.generate(request_of()), model="other")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        use(start_vllm(), tiny_tokenizer, lambda engine: engine.generate(request_of()), api_key_env="NO_SUCH_KEY")
    with pytest.raises(EngineError, match="HTTP 501"):
        asyncio.run(VLLMEngine.connect(chat_server.url, tiny_tokenizer, retries=0))


def test_log_probabilities_are_never_above_zero_in_the_imitation(start_vllm) -> None:
    """The tests above rely on it."""
    imitation = start_vllm()
    for temperature in (0.5, 1.0, 2.0):
        true = imitation.log_probs([1, 2, 3], temperature)
        assert sum(map(math.exp, true.values())) == pytest.approx(1.0)
