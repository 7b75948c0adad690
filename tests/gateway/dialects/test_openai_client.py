"""The `openai` package as a client, with its types checked strictly."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from tests.gateway.served import TWO_CALLS, Verdict

from midstream.core.errors import EngineError
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine

CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Compute an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "maxLength": 12}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}
FLAT: Any = {"type": "function", "strict": False, **CALCULATOR["function"]}


def client_of(opened: dict[str, Any], **settings: Any) -> OpenAI:
    """OpenAI's client, which raises if an answer does not match its types."""
    return OpenAI(
        base_url=opened["base_url"],
        api_key=opened["token"],
        _strict_response_validation=True,
        **{"max_retries": 0, **settings},
    )


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.fixture
def says(serve, tiny_tokenizer: ChatTokenizer):
    """A gateway with scripted replies, and a client in its own trajectory."""

    def start(*replies: Any, **settings: Any):
        served = serve(ScriptedEngine(tiny_tokenizer, list(replies)), **settings)
        opened = served.open(trajectory_uid="t")
        return served, client_of(opened)

    return start


@pytest.fixture
def samples(serve, make_policy):
    """A gateway for the model `tiny`, and a client in its own trajectory."""
    served = serve(make_policy().engine)
    return served, client_of(served.open(trajectory_uid="t"))


def test_a_conversation_is_recorded_as_one_path_of_exact_tokens(says) -> None:
    served, client = says("Hello.", "You are welcome.")
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


def test_a_stream_adds_up_to_the_whole_answer(says) -> None:
    served, client = says(TWO_CALLS, TWO_CALLS)
    whole = client.chat.completions.create(model="tiny", messages=[user("?")], tools=[CALCULATOR])
    asked: Any = {"model": "tiny", "messages": [user("?")], "tools": [CALCULATOR]}
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
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
    said = (chunk.choices[0].delta.content or "") + "".join(
        later.choices[0].delta.content or "" for later in chunks if later.choices
    )
    assert said == "one two three four five six" == served.steps("t")[0].text


def test_results_of_parallel_calls_extend_the_sampled_tokens(says) -> None:
    served, client = says(TWO_CALLS, "2 and 4.")
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


def test_required_and_named_tools_constrain_the_reply_to_a_call(samples) -> None:
    _, client = samples
    named = {"type": "function", "function": {"name": "calculator"}}
    for choice in ("required", named):
        completion = client.chat.completions.create(
            model="tiny",
            messages=[user("1+1?")],
            tools=[CALCULATOR],
            tool_choice=choice,
            parallel_tool_calls=False,
            response_format={"type": "json_object"},  # holds for what is said, not for calls
            max_tokens=120,
        )
        (call,) = completion.choices[0].message.tool_calls
        assert completion.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "calculator"
        assert set(json.loads(call.function.arguments)) == {"expression"}


def test_tool_choice_none_prevents_calls(says) -> None:
    served, client = says(TWO_CALLS)
    completion = client.chat.completions.create(
        model="tiny", messages=[user("?")], tools=[CALCULATOR], tool_choice="none"
    )
    assert completion.choices[0].message.tool_calls is None
    assert completion.choices[0].message.content == TWO_CALLS
    assert "calculator" not in served.gateway.tokenizer.decode(served.steps("t")[0].prompt_ids)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own, of its `parsed`
def test_parse_returns_the_schemas_object_and_accepts_it_in_the_history(samples) -> None:
    served, client = samples
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


def test_with_tools_and_a_schema_the_reply_is_a_call_or_json(samples) -> None:
    _, client = samples
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


def test_json_mode_returns_an_object(samples) -> None:
    _, client = samples
    completion = client.chat.completions.create(
        model="tiny", messages=[user("JSON")], response_format={"type": "json_object"}, max_tokens=300, seed=3
    )
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(completion.choices[0].message.content), dict)
    else:
        assert completion.choices[0].message.content.lstrip().startswith("{")


def test_n_choices_are_n_steps_of_one_prompt(samples) -> None:
    served, client = samples
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
    said = {n: "" for n in range(3)}
    for chunk in chunks:
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert [said[n] for n in range(3)] == [c.message.content for c in completion.choices]
    assert chunks[-1].usage == completion.usage


def test_the_same_seed_gives_the_same_tokens(samples) -> None:
    served, client = samples
    for seed in (1, 1, 2):
        client.chat.completions.create(model="tiny", messages=[user("?")], max_tokens=12, seed=seed)
    one, same, other = (step.response_ids for step in served.steps("t"))
    assert one == same != other


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(says, stream: bool) -> None:
    served, client = says("Thought: 7\nObservation: made up", "next")
    asked: Any = {"model": "tiny", "messages": [user("?")], "stop": ["Obs", "never"]}
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        content = client.chat.completions.create(**asked).choices[0].message.content
    (step,) = served.steps("t")
    assert content == "Thought: 7\n"
    assert "Obs" in step.text and served.gateway.tokenizer.text_of(step.response_ids) == step.text
    client.chat.completions.create(
        model="tiny", messages=[user("?"), {"role": "assistant", "content": content}, user("and?")]
    )
    assert served.steps("t")[1].prompt_ids[: len(step.prompt_ids)] == step.prompt_ids


def test_log_probabilities_are_those_recorded(samples) -> None:
    served, client = samples
    completion = client.chat.completions.create(
        model="tiny", messages=[user("?")], max_tokens=6, logprobs=True, top_logprobs=3
    )
    (step,) = served.steps("t")
    content = completion.choices[0].logprobs.content
    assert [token.logprob for token in content] == list(step.rollout_log_probs)
    said = b"".join(bytes(token.bytes or ()) for token in content)
    assert said.decode(errors="replace") == served.gateway.tokenizer.decode(step.response_ids)
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= max(likely.logprob for likely in token.top_logprobs) + 1e-6
    chunks = client.chat.completions.create(
        model="tiny", messages=[user("?")], max_tokens=6, logprobs=True, seed=1, stream=True
    )
    told = [t.logprob for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content or ()]
    assert told == list(served.steps("t")[1].rollout_log_probs)


def test_user_and_metadata_are_kept_with_the_step(says) -> None:
    served, client = says("ok")
    client.chat.completions.create(
        model="tiny",
        messages=[user("?")],
        user="ann",
        metadata={"stage": "plan"},
        extra_headers={"X-Midstream-Role": "planner"},
    )
    (step,) = served.steps("t")
    assert (step.role, step.metadata["user"], step.metadata["metadata"]) == ("planner", "ann", {"stage": "plan"})


def test_a_missing_endpoint_is_named(says) -> None:
    _, client = says()
    with pytest.raises(
        openai.NotFoundError, match=r"there is no POST \S+/v1/embeddings here; /docs lists every endpoint"
    ):
        client.embeddings.create(model="tiny", input="?")


def test_text_completions_take_text_or_token_ids(samples) -> None:
    served, client = samples
    ids = served.gateway.tokenizer.encode("The capital")
    by_text = client.completions.create(model="tiny", prompt="The capital", max_tokens=5, seed=1, echo=True)
    by_ids = client.completions.create(model="tiny", prompt=list(ids), max_tokens=5, seed=1, logprobs=2)
    one, two = served.steps("t")
    assert one.prompt_ids == two.prompt_ids == ids and one.response_ids == two.response_ids
    assert by_text.choices[0].text == "The capital" + by_ids.choices[0].text
    assert by_ids.choices[0].logprobs.token_logprobs == list(two.rollout_log_probs)
    assert by_text.usage.completion_tokens == 5


def test_a_text_completion_streams(says) -> None:
    _, client = says("one two three")
    # OpenAI's own server has null for the finish reason of all but the last chunk, which its client's types do not.
    client = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    chunks = list(
        client.completions.create(
            model="tiny", prompt="count:", echo=True, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "count:one two three"
    assert chunks[-1].usage is not None and chunks[-2].choices[0].finish_reason == "stop"


def test_a_response_continues_an_earlier_one(says) -> None:
    served, client = says("Hello.", "You are welcome.")
    first = client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    second = client.responses.create(
        model="tiny", input="Thanks", instructions="Be brief.", previous_response_id=first.id
    )
    _, two = served.steps("t")
    assert (first.output_text, second.output_text) == ("Hello.", "You are welcome.")
    assert (first.status, second.previous_response_id) == ("completed", first.id)
    assert (two.parent, two.branch_reason) == (0, "")
    assert second.usage.input_tokens == len(two.prompt_ids)


def test_instructions_apply_to_one_response_and_system_items_to_the_conversation(says) -> None:
    served, client = says("1", "2", "3", "4")
    items: Any = [{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, user("Hi")]
    first = client.responses.create(model="tiny", input=items, instructions="I")
    second = client.responses.create(model="tiny", input="Two", previous_response_id=first.id)
    third = client.responses.create(model="tiny", input="Three", instructions="J", previous_response_id=second.id)
    client.responses.create(model="tiny", input="Four", previous_response_id=third.id)
    told = [[message["content"] for message in step.messages] for step in served.steps("t")]
    assert told == [
        ["I", "S", "D", "Hi"],
        ["S", "D", "Hi", "1", "Two"],
        ["J", "S", "D", "Hi", "1", "Two", "2", "Three"],
        ["S", "D", "Hi", "1", "Two", "2", "Three", "3", "Four"],
    ]


def test_function_calls_are_answered_in_the_next_input(says) -> None:
    served, client = says(TWO_CALLS, "2 and 4.")
    given: list[Any] = [user("1+1 and 2+2?")]
    first = client.responses.create(model="tiny", input=given, tools=[FLAT])
    calls = [item for item in first.output if item.type == "function_call"]
    assert first.output_text == "Both." and [json.loads(c.arguments) for c in calls][1] == {"expression": "2+2"}
    given += first.output
    given += [
        {"type": "function_call_output", "call_id": c.call_id, "output": r} for c, r in zip(calls, "24", strict=True)
    ]
    second = client.responses.create(model="tiny", input=given, tools=[FLAT])
    assert second.output_text == "2 and 4."
    one, two = served.steps("t")
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert (two.parent, two.branch_reason) == (0, "")


def test_a_stream_of_response_events_adds_up_to_the_response(serve, thinking_tokenizer) -> None:
    served = serve(ScriptedEngine(thinking_tokenizer, "<think>Hm.</think>" + TWO_CALLS))
    client = client_of(served.open(trajectory_uid="t"))
    whole = client.responses.create(model="tiny", input="?", tools=[FLAT])
    with client.responses.stream(model="tiny", input="?", tools=[FLAT]) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    said = {"id", "call_id", "parsed_arguments", "parsed"}
    plain = [[_without(item.to_dict(), said) for item in response.output] for response in (whole, streamed)]
    assert plain[0] == plain[1]
    assert [item["type"] for item in plain[0]] == ["reasoning", "message", "function_call", "function_call"]
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == "Both." == streamed.output_text


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, names) for key, one in value.items() if key not in names}
    return [_without(one, names) for one in value] if isinstance(value, list) else value


def test_a_response_is_parsed_into_the_requested_object(samples) -> None:
    served, client = samples
    parsed = client.responses.parse(model="tiny", input="Is it?", text_format=Verdict, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Verdict)
    held: Any = {"format": {"type": "json_schema", "name": "verdict", "schema": Verdict.model_json_schema()}}
    cut = client.responses.create(
        model="tiny", input=[*_input("Is it?"), *parsed.output, user("Sure?")], max_output_tokens=3, text=held
    )
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert served.steps("t")[1].parent == 0


def _input(text: str) -> list[Any]:
    return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]


def test_errors_become_the_clients_exceptions(serve, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNERS_KEY", "key-of-the-owner")
    keys = [{"name": "owner", "env": "OWNERS_KEY", "requests_per_minute": 2}]
    served = serve(ScriptedEngine(tiny_tokenizer, ["ok", EngineError("out of memory")]), keys=keys)
    opened = served.open("key-of-the-owner", trajectory_uid="t")
    other = served.open("key-of-the-owner", trajectory_uid="other")
    client = client_of(opened)
    asked: Any = {"model": "tiny", "messages": [user("?")]}

    with pytest.raises(openai.AuthenticationError, match="is unknown"):
        client.with_options(api_key="wrong").chat.completions.create(**asked)
    with pytest.raises(openai.PermissionDeniedError, match="not for trajectory 't'"):
        client.with_options(api_key=other["token"]).chat.completions.create(**asked)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'; this gateway serves tiny"):
        client.chat.completions.create(**{**asked, "model": "gpt-5"})
    with pytest.raises(openai.NotFoundError, match="no response 'resp_x'"):
        client.responses.create(model="tiny", input="?", previous_response_id="resp_x")
    with pytest.raises(openai.BadRequestError, match=r"messages.: List should have at least 1 item") as error:
        client.chat.completions.create(**{**asked, "messages": []})
    assert (error.value.param, error.value.type) == ("messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**asked, temperature=-1)
    owner = client.with_options(api_key="key-of-the-owner")
    assert owner.chat.completions.create(**asked).choices[0].message.content == "ok"
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(**asked)
    with pytest.raises(openai.RateLimitError, match="2 calls a minute") as late:
        owner.chat.completions.create(**asked)
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


def test_clients_do_not_retry_errors_that_would_repeat(says) -> None:
    served, client = says("ok")
    with httpx.Client(base_url=served.url) as own:
        own.post("/complete_trajectory/t").raise_for_status()
    asked: Any = {"model": "tiny", "messages": [user("?")]}
    with pytest.raises(openai.ConflictError, match="has ended") as error:
        client.with_options(max_retries=2).chat.completions.create(**asked)
    assert error.value.request.headers["x-stainless-retry-count"] == "0"
    assert error.value.code == "trajectory_ended"


def test_a_repeated_call_with_a_key_gets_the_same_answer(says) -> None:
    served, client = says(TWO_CALLS, "another")
    asked: Any = {"model": "tiny", "messages": [user("?")], "tools": [CALCULATOR]}
    keyed: Any = {**asked, "extra_headers": {"Idempotency-Key": "call-1"}}
    first = client.chat.completions.create(**keyed)
    assert client.chat.completions.create(**keyed).choices == first.choices
    with client.chat.completions.stream(**keyed) as stream:
        again = stream.get_final_completion().choices[0].message
    assert [c.id for c in again.tool_calls] == [c.id for c in first.choices[0].message.tool_calls]
    assert client.chat.completions.create(**asked).choices[0].message.content == "another"
    assert len(served.steps("t")) == 2


def test_models_are_listed_and_looked_up(says) -> None:
    served, client = says(aliases=["team/small"])
    assert [model.id for model in client.models.list()] == ["tiny", "team/small"]
    root = client.with_options(base_url=f"{served.url}/v1")
    for one in (client, root):
        assert one.models.retrieve("team/small").owned_by == "midstream"
        with pytest.raises(openai.NotFoundError):
            one.models.retrieve("other")
