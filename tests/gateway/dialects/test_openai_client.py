"""The `openai` package as a client, with its types checked strictly."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from tests.gateway.dialects.openai_clients import CALCULATOR, client_of, user
from tests.gateway.served import TWO_CALLS, Verdict

from midstream.core.errors import EngineError
from midstream.engines.scripted import ScriptedEngine


def test_a_conversation_is_recorded_as_one_path_of_exact_tokens(scripted) -> None:
    served, client = scripted("Hello.", "You are welcome.")
    messages = [{"role": "developer", "content": "Be brief."}, user("Hi")]
    first = client.chat.completions.create(model="tiny", messages=messages)
    messages += [first.choices[0].message, user("Thanks")]
    second = client.chat.completions.create(model="tiny", messages=messages)
    one, two = served.steps("t")
    assert (first.choices[0].message.content, second.choices[0].message.content) == ("Hello.", "You are welcome.")
    assert (first.choices[0].finish_reason, first.model) == ("stop", "tiny")
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert (two.parent, two.branch_reason) == (0, "")
    assert second.usage is not None
    assert second.usage.prompt_tokens == len(two.prompt_ids)
    assert second.usage.completion_tokens == len(two.response_ids)


def test_a_stream_adds_up_to_the_whole_answer(scripted) -> None:
    served, client = scripted(TWO_CALLS, TWO_CALLS)
    whole = client.chat.completions.create(model="tiny", messages=[user("?")], tools=[CALCULATOR])
    arguments: Any = {"model": "tiny", "messages": [user("?")], "tools": [CALCULATOR]}
    with client.chat.completions.stream(**arguments, stream_options={"include_usage": True}) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion()
    assert kinds.count("chunk") > 10
    assert kinds.count("tool_calls.function.arguments.done") == 2
    for one, other in zip(whole.choices, streamed.choices, strict=True):
        assert one.message.content == other.message.content == "Both."
        assert one.finish_reason == other.finish_reason == "tool_calls"
        assert [c.function.arguments for c in one.message.tool_calls or ()] == [
            c.function.arguments for c in other.message.tool_calls or ()
        ]
    assert whole.usage == streamed.usage
    assert served.steps("t")[0].response_ids == served.steps("t")[1].response_ids


def test_text_is_streamed_while_the_model_samples(serve, tiny_tokenizer) -> None:
    served = serve(ScriptedEngine(tiny_tokenizer, "one two three four five six", tokens_per_s=50.0))
    client = client_of(served.open(trajectory_uid="t"))
    chunks = iter(client.chat.completions.create(model="tiny", messages=[user("?")], stream=True))
    while not (chunk := next(chunks)).choices[0].delta.content:
        pass
    assert served.steps("t") == ()
    text = (chunk.choices[0].delta.content or "") + "".join(
        later.choices[0].delta.content or "" for later in chunks if later.choices
    )
    assert text == "one two three four five six" == served.steps("t")[0].text


def test_results_of_parallel_calls_extend_the_sampled_tokens(scripted) -> None:
    served, client = scripted(TWO_CALLS, "2 and 4.")
    messages: list[Any] = [user("1+1 and 2+2?")]
    reply = client.chat.completions.create(model="tiny", messages=messages, tools=[CALCULATOR]).choices[0].message
    calls = reply.tool_calls
    assert [call.function.name for call in calls] == ["calculator"] * 2
    assert len({call.id for call in calls}) == 2
    results = [{"role": "tool", "tool_call_id": c.id, "content": r} for c, r in zip(calls, "24", strict=True)]
    answer = client.chat.completions.create(model="tiny", messages=[*messages, reply, *results], tools=[CALCULATOR])
    assert answer.choices[0].message.content == "2 and 4."
    one, two = served.steps("t")
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert (two.parent, two.branch_reason) == (0, "")


def test_required_and_named_tools_constrain_the_reply_to_a_call(sampled) -> None:
    _, client = sampled
    named = {"type": "function", "function": {"name": "calculator"}}
    for choice in ("required", named):
        completion = client.chat.completions.create(
            model="tiny",
            messages=[user("1+1?")],
            tools=[CALCULATOR],
            tool_choice=choice,
            parallel_tool_calls=False,
            response_format={"type": "json_object"},  # applies to text, not to calls
            max_tokens=120,
        )
        (call,) = completion.choices[0].message.tool_calls
        assert completion.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "calculator"
        assert set(json.loads(call.function.arguments)) == {"expression"}


def test_tool_choice_none_prevents_calls(scripted) -> None:
    served, client = scripted(TWO_CALLS)
    completion = client.chat.completions.create(
        model="tiny", messages=[user("?")], tools=[CALCULATOR], tool_choice="none"
    )
    assert completion.choices[0].message.tool_calls is None
    assert completion.choices[0].message.content == TWO_CALLS
    assert "calculator" not in served.gateway.tokenizer.decode(served.steps("t")[0].prompt_ids)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own, of its `parsed`
def test_parse_returns_the_schemas_object_and_accepts_it_in_the_history(sampled) -> None:
    served, client = sampled
    messages: list[Any] = [user("Is 2 the answer?")]
    completion = client.chat.completions.parse(
        model="tiny", messages=messages, response_format=Verdict, max_completion_tokens=200
    )
    message = completion.choices[0].message
    assert isinstance(message.parsed, Verdict)
    again = client.chat.completions.create(
        model="tiny", messages=[*messages, message, user("Sure?")], max_completion_tokens=4
    )
    assert again.choices[0].finish_reason == "length"
    assert served.steps("t")[1].parent == 0


def test_with_tools_and_a_schema_the_reply_is_a_call_or_json(sampled) -> None:
    _, client = sampled
    kinds = set()
    for seed in range(8):
        message = (
            client.chat.completions.parse(
                model="tiny",
                messages=[user("?")],
                tools=[{**CALCULATOR, "function": {**CALCULATOR["function"], "strict": True}}],
                response_format=Verdict,
                max_tokens=200,
                parallel_tool_calls=False,
                temperature=5.0,
                seed=seed,
            )
            .choices[0]
            .message
        )
        assert isinstance(message.parsed, Verdict) or message.tool_calls[0].function.name == "calculator"
        kinds.add("call" if message.tool_calls else "answer")
    assert kinds == {"call", "answer"}


def test_json_mode_returns_an_object(sampled) -> None:
    _, client = sampled
    completion = client.chat.completions.create(
        model="tiny", messages=[user("JSON")], response_format={"type": "json_object"}, max_tokens=300, seed=3
    )
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(completion.choices[0].message.content), dict)
    else:
        assert completion.choices[0].message.content.lstrip().startswith("{")


def test_n_choices_are_n_steps_of_one_prompt(sampled) -> None:
    served, client = sampled
    completion = client.chat.completions.create(model="tiny", messages=[user("?")], n=3, max_tokens=8, seed=5)
    steps = served.steps("t")
    assert len(steps) == 3 and len({step.prompt_ids for step in steps}) == 1
    assert {c.message.content for c in completion.choices} == {step.text for step in steps}
    assert len({step.text for step in steps}) > 1
    assert completion.usage.completion_tokens == sum(len(step.response_ids) for step in steps)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[user("?")],
            n=3,
            max_tokens=8,
            seed=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = {n: "" for n in range(3)}
    for chunk in chunks:
        for choice in chunk.choices:
            text[choice.index] += choice.delta.content or ""
    assert [text[n] for n in range(3)] == [c.message.content for c in completion.choices]
    assert chunks[-1].usage == completion.usage


def test_the_same_seed_gives_the_same_tokens(sampled) -> None:
    served, client = sampled
    for seed in (1, 1, 2):
        client.chat.completions.create(model="tiny", messages=[user("?")], max_tokens=12, seed=seed)
    one, same, other = (step.response_ids for step in served.steps("t"))
    assert one == same != other


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(scripted, stream: bool) -> None:
    served, client = scripted("Thought: 7\nObservation: made up", "next")
    arguments: Any = {"model": "tiny", "messages": [user("?")], "stop": ["Obs", "never"]}
    if stream:
        chunks = list(client.chat.completions.create(**arguments, stream=True))
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        content = client.chat.completions.create(**arguments).choices[0].message.content
    (step,) = served.steps("t")
    assert content == "Thought: 7\n"
    assert "Obs" in step.text and served.gateway.tokenizer.text_of(step.response_ids) == step.text
    client.chat.completions.create(
        model="tiny", messages=[user("?"), {"role": "assistant", "content": content}, user("and?")]
    )
    assert served.steps("t")[1].prompt_ids[: len(step.prompt_ids)] == step.prompt_ids


def test_log_probabilities_are_those_recorded(sampled) -> None:
    served, client = sampled
    completion = client.chat.completions.create(
        model="tiny", messages=[user("?")], max_tokens=6, logprobs=True, top_logprobs=3
    )
    (step,) = served.steps("t")
    content = completion.choices[0].logprobs.content
    assert [token.logprob for token in content] == list(step.rollout_log_probs)
    text = b"".join(bytes(token.bytes or ()) for token in content)
    assert text.decode(errors="replace") == served.gateway.tokenizer.decode(step.response_ids)
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= max(likely.logprob for likely in token.top_logprobs) + 1e-6
    chunks = client.chat.completions.create(
        model="tiny", messages=[user("?")], max_tokens=6, logprobs=True, seed=1, stream=True
    )
    told = [t.logprob for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content or ()]
    assert told == list(served.steps("t")[1].rollout_log_probs)


def test_user_and_metadata_are_kept_with_the_step(scripted) -> None:
    served, client = scripted("ok")
    client.chat.completions.create(
        model="tiny",
        messages=[user("?")],
        user="ann",
        metadata={"stage": "plan"},
        extra_headers={"X-Midstream-Role": "planner"},
    )
    (step,) = served.steps("t")
    assert (step.role, step.metadata["user"], step.metadata["metadata"]) == ("planner", "ann", {"stage": "plan"})


def test_a_missing_endpoint_is_named(scripted) -> None:
    _, client = scripted()
    with pytest.raises(
        openai.NotFoundError, match=r"there is no POST \S+/v1/embeddings here; /docs lists every endpoint"
    ):
        client.embeddings.create(model="tiny", input="?")


def test_errors_become_the_clients_exceptions(serve, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNERS_KEY", "key-of-the-owner")
    keys = [{"name": "owner", "env": "OWNERS_KEY", "requests_per_minute": 2}]
    served = serve(ScriptedEngine(tiny_tokenizer, ["ok", EngineError("out of memory")]), keys=keys)
    opened = served.open("key-of-the-owner", trajectory_uid="t")
    other = served.open("key-of-the-owner", trajectory_uid="other")
    client = client_of(opened)
    arguments: Any = {"model": "tiny", "messages": [user("?")]}

    with pytest.raises(openai.AuthenticationError, match="is unknown"):
        client.with_options(api_key="wrong").chat.completions.create(**arguments)
    with pytest.raises(openai.PermissionDeniedError, match="not for trajectory 't'"):
        client.with_options(api_key=other["token"]).chat.completions.create(**arguments)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'; this gateway serves tiny"):
        client.chat.completions.create(**{**arguments, "model": "gpt-5"})
    with pytest.raises(openai.NotFoundError, match="no response 'resp_x'"):
        client.responses.create(model="tiny", input="?", previous_response_id="resp_x")
    with pytest.raises(openai.BadRequestError, match=r"messages.: List should have at least 1 item") as error:
        client.chat.completions.create(**{**arguments, "messages": []})
    assert (error.value.param, error.value.type) == ("messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**arguments, temperature=-1)
    owner = client.with_options(api_key="key-of-the-owner")
    assert owner.chat.completions.create(**arguments).choices[0].message.content == "ok"
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(**arguments)
    with pytest.raises(openai.RateLimitError, match="2 calls a minute") as late:
        owner.chat.completions.create(**arguments)
    assert int(late.value.response.headers["retry-after"]) > 0
    assert len(served.steps("t")) == 1


def test_a_prompt_that_is_too_long_is_refused(serve, tiny_tokenizer) -> None:
    served = serve(ScriptedEngine(tiny_tokenizer, "ok", context_length=50))
    client = client_of(served.open(trajectory_uid="t"))
    with pytest.raises(openai.BadRequestError, match="nothing is cut") as error:
        client.chat.completions.create(model="tiny", messages=[user("much " * 100)])
    assert error.value.code == "context_length_exceeded"


def test_an_engine_failure_in_a_stream_raises_in_the_client(serve, tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "one two three")
    heard = engine.generate

    async def dying(request: Any) -> Any:
        await heard(request)
        raise EngineError("the device was lost")

    engine.generate = dying
    served = serve(engine)
    client = client_of(served.open(trajectory_uid="t"))
    with pytest.raises(openai.APIError, match="the device was lost"):
        for _ in client.chat.completions.create(model="tiny", messages=[user("?")], stream=True):
            pass
    assert served.steps("t") == ()


def test_clients_do_not_retry_errors_that_would_repeat(scripted) -> None:
    served, client = scripted("ok")
    with httpx.Client(base_url=served.url) as own:
        own.post("/complete_trajectory/t").raise_for_status()
    arguments: Any = {"model": "tiny", "messages": [user("?")]}
    with pytest.raises(openai.ConflictError, match="has ended") as error:
        client.with_options(max_retries=2).chat.completions.create(**arguments)
    assert error.value.request.headers["x-stainless-retry-count"] == "0"
    assert error.value.code == "trajectory_ended"


def test_a_repeated_call_with_a_key_gets_the_same_answer(scripted) -> None:
    served, client = scripted(TWO_CALLS, "another")
    arguments: Any = {"model": "tiny", "messages": [user("?")], "tools": [CALCULATOR]}
    keyed: Any = {**arguments, "extra_headers": {"Idempotency-Key": "call-1"}}
    first = client.chat.completions.create(**keyed)
    assert client.chat.completions.create(**keyed).choices == first.choices
    with client.chat.completions.stream(**keyed) as stream:
        again = stream.get_final_completion().choices[0].message
    assert [c.id for c in again.tool_calls] == [c.id for c in first.choices[0].message.tool_calls]
    assert client.chat.completions.create(**arguments).choices[0].message.content == "another"
    assert len(served.steps("t")) == 2


def test_models_are_listed_and_looked_up(scripted) -> None:
    served, client = scripted(aliases=["team/small"])
    assert [model.id for model in client.models.list()] == ["tiny", "team/small"]
    root = client.with_options(base_url=f"{served.url}/v1")
    for one in (client, root):
        assert one.models.retrieve("team/small").owned_by == "midstream"
        with pytest.raises(openai.NotFoundError):
            one.models.retrieve("other")
