"""The `anthropic` package as a client, with its types checked strictly."""

from __future__ import annotations

import base64
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic
from tests.gateway.served import TWO_CALLS, Verdict

from midstream.core.errors import EngineError
from midstream.engines.scripted import ScriptedEngine

CALCULATOR: Any = {
    "name": "calculator",
    "description": "Compute an expression.",
    "input_schema": {
        "type": "object",
        "properties": {"expression": {"type": "string", "maxLength": 12}},
        "required": ["expression"],
        "additionalProperties": False,
    },
}


def client_of(opened: dict[str, Any], **settings: Any) -> Anthropic:
    """Anthropic's client, which raises if an answer does not match its types."""
    return Anthropic(
        base_url=opened["base_url"].removesuffix("/v1"),
        api_key=opened["token"],
        _strict_response_validation=True,
        **{"max_retries": 0, **settings},
    )


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


def arguments(*messages: Any, **more: Any) -> Any:
    return {"model": "tiny", "max_tokens": 200, "messages": list(messages), **more}


def test_a_conversation_is_recorded_as_one_path_of_exact_tokens(scripted) -> None:
    served, client = scripted("Hello.", "You are welcome.")
    first = client.messages.create(**arguments(user("Hi"), system="Be brief."))
    history = [user("Hi"), {"role": "assistant", "content": first.content}, user([{"type": "text", "text": "Thanks"}])]
    second = client.messages.create(**arguments(*history, system=[{"type": "text", "text": "Be brief."}]))
    one, two = served.steps("t")
    assert [block.text for message in (first, second) for block in message.content] == ["Hello.", "You are welcome."]
    assert (first.stop_reason, first.stop_sequence, first.model) == ("end_turn", None, "tiny")
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert (two.parent, two.branch_reason) == (0, "")
    assert (second.usage.input_tokens, second.usage.output_tokens) == (len(two.prompt_ids), len(two.response_ids))


def test_results_of_parallel_tools_extend_the_sampled_tokens(scripted) -> None:
    served, client = scripted(TWO_CALLS, "2 and 4.")
    first = client.messages.create(**arguments(user("1+1 and 2+2?"), tools=[CALCULATOR]))
    text, *calls = first.content
    assert (first.stop_reason, text.text) == ("tool_use", "Both.")
    assert [call.input for call in calls] == [{"expression": "1+1"}, {"expression": "2+2"}]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": result}
        for call, result in zip(calls, ("2", [{"type": "text", "text": "4"}]), strict=True)
    ]
    history = [user("1+1 and 2+2?"), {"role": "assistant", "content": first.content}, user(results)]
    second = client.messages.create(**arguments(*history, tools=[CALCULATOR]))
    assert second.content[0].text == "2 and 4."
    one, two = served.steps("t")
    assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert (two.parent, two.branch_reason) == (0, "")


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        ("Plain text.", ["text"]),
        ("", ["text"]),
        (TWO_CALLS, ["text", "tool_use", "tool_use"]),
        (f"<think>Let me see.</think>{TWO_CALLS}", ["thinking", "text", "tool_use", "tool_use"]),
    ],
)
def test_a_stream_adds_up_to_the_whole_message_and_can_be_continued(
    scripted, thinking_tokenizer, reply: str, kinds: list[str]
) -> None:
    served, client = scripted(reply, reply, "So.", tokenizer=thinking_tokenizer)
    whole = client.messages.create(**arguments(user("?"), tools=[CALCULATOR]))
    with client.messages.stream(**arguments(user("?"), tools=[CALCULATOR])) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_message()
    plain = [[block.to_dict() for block in message.content] for message in (whole, streamed)]
    for block in (*plain[0], *plain[1]):
        block.pop("id", None)
        block.pop("parsed_output", None)
    assert plain[0] == plain[1]
    assert [block["type"] for block in plain[0]] == kinds
    # pydantic-ai sends a thought without a signature back as text.
    assert all(block["signature"] for block in plain[0] if block["type"] == "thinking")
    assert events.count("content_block_start") == events.count("content_block_stop") == len(kinds)
    assert (whole.stop_reason, whole.usage) == (streamed.stop_reason, streamed.usage)
    turn = {"role": "assistant", "content": streamed.content}
    client.messages.create(**arguments(user("?"), turn, user("so?"), tools=[CALCULATOR]))
    *_, last = served.steps("t")
    # Where the template drops a thought, what follows it is a branch, and the step says why.
    assert (last.parent, last.branch_reason) == ((None, "stripped_thinking") if "think" in reply else (1, ""))


def test_the_clients_tool_runner_continues_its_thread(scripted) -> None:
    """It sends only new messages, and the whole conversation if the thread is unknown."""
    served, client = scripted(TWO_CALLS, "Two and four.", "You are welcome.")
    computed: list[str] = []

    @anthropic.beta_tool
    def calculator(expression: str) -> str:
        """Compute an expression."""
        computed.append(expression)
        return "4"

    runner = client.beta.messages.tool_runner(**arguments(user("Compute."), system="Be brief."), tools=[calculator])
    assert [block.text for block in runner.until_done().content] == ["Two and four."]
    assert computed == ["1+1", "2+2"]
    called, answered = served.steps("t")
    assert (answered.parent, answered.branch_reason) == (0, "")
    assert [message["role"] for message in answered.messages] == ["system", "user", "assistant", "tool", "tool"]
    assert answered.tools == called.tools != ()

    thread: Any = {"type": "continue", "previous_message_id": f"msg_{answered.metadata['answer_id']}"}
    thanked = client.beta.messages.create(**arguments(user("Thanks!"), thread=thread))
    assert thanked.content[0].to_dict()["text"] == "You are welcome."
    assert served.steps("t")[2].parent == 1
    with pytest.raises(anthropic.BadRequestError, match="system and tools are taken from the thread"):
        client.beta.messages.create(**arguments(user("?"), thread=thread, system="Be rude."))
    with pytest.raises(anthropic.NotFoundError, match="trajectory 't' has no message 'msg_x'") as lost:
        client.beta.messages.create(**arguments(user("?"), thread={**thread, "previous_message_id": "msg_x"}))
    assert lost.value.response.json()["error"]["details"] == {"error_code": "thread_not_found"}


def test_a_thread_keeps_its_tools_after_a_turn_without_tools(scripted) -> None:
    served, client = scripted("No tool.", TWO_CALLS)
    create: Any = {"thread": {"type": "create"}, "tools": [CALCULATOR], "tool_choice": {"type": "none"}}
    first = client.beta.messages.create(**arguments(user("Hello."), **create))
    client.beta.messages.create(
        **arguments(user("Compute."), thread={"type": "continue", "previous_message_id": first.id})
    )
    assert [[tool["function"]["name"] for tool in step.tools] for step in served.steps("t")] == [[], ["calculator"]]


def test_any_and_named_tools_constrain_the_reply_to_a_call(sampled) -> None:
    _, client = sampled
    for choice in ({"type": "any"}, {"type": "tool", "name": "calculator"}):
        choice |= {"disable_parallel_tool_use": True}
        message = client.messages.create(**arguments(user("1+1?"), tools=[CALCULATOR], tool_choice=choice))
        (call,) = message.content
        assert (message.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "calculator")
        assert set(call.input) == {"expression"}


def test_parse_returns_the_schemas_object_and_accepts_it_in_the_history(sampled) -> None:
    served, client = sampled
    message = client.messages.parse(**arguments(user("Is it?")), output_format=Verdict)
    assert isinstance(message.parsed_output, Verdict)
    with client.messages.stream(**arguments(user("Is it?")), output_format=Verdict) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Verdict)
    turn = {"role": "assistant", "content": message.content}
    held = {"format": {"type": "json_schema", "schema": Verdict.model_json_schema()}}  # too short a reply for it
    again = arguments(user("Is it?"), turn, user("Sure?"), output_config=held)
    cut = client.messages.create(**{**again, "max_tokens": 3})
    assert cut.stop_reason == "max_tokens"
    assert served.steps("t")[2].parent in (0, 1)


def test_a_stop_sequence_ends_the_message_and_is_reported(scripted) -> None:
    served, client = scripted("Thought: 7\nObservation: made up")
    message = client.messages.create(**arguments(user("?"), stop_sequences=["Obs", "never"]))
    assert (message.stop_reason, message.stop_sequence, message.content[0].text) == (
        "stop_sequence",
        "Obs",
        "Thought: 7\n",
    )
    assert "Obs" in served.steps("t")[0].text


def test_counted_tokens_equal_the_messages_input_tokens(scripted) -> None:
    served, client = scripted("ok")
    prompt: Any = {"messages": [user("Hi")], "system": "Be brief.", "tools": [CALCULATOR]}
    counted = client.messages.count_tokens(model="tiny", **prompt)
    client.messages.create(model="tiny", max_tokens=5, **prompt)
    (step,) = served.steps("t")
    assert counted.input_tokens == len(step.prompt_ids)


def test_sampling_arguments_and_metadata_reach_the_step(scripted) -> None:
    served, client = scripted("ok")
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 5}  # this client no longer names them; older ones do
    client.messages.create(**arguments(user("?"), metadata={"user_id": "ann"}), extra_body=sampling)
    (step,) = served.steps("t")
    assert (step.temperature, step.metadata["user"]) == (0.5, "ann")


def test_unsupported_content_is_refused_by_name(scripted) -> None:
    served, client = scripted()
    image = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(b"png").decode()}
    for block, told in (
        ({"type": "image", "source": image}, "an image: this model's chat template has no place for one"),
        ({"type": "document", "title": "x"}, "'messages.0.content.0': Input tag 'document' found"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=told):
            client.messages.create(**arguments(user([block])))
    with pytest.raises(anthropic.BadRequestError, match="prefilled replies are not supported"):
        client.messages.create(**arguments(user("?"), {"role": "assistant", "content": "It is"}))
    assert served.steps("t") == ()


def test_errors_become_the_clients_exceptions(serve, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNERS_KEY", "key-of-the-owner")
    keys = [{"name": "owner", "env": "OWNERS_KEY", "requests_per_minute": 2}]
    served = serve(ScriptedEngine(tiny_tokenizer, ["ok", EngineError("out of memory")]), keys=keys)
    opened = served.open("key-of-the-owner", trajectory_uid="t")
    other = served.open("key-of-the-owner", trajectory_uid="other")
    client = client_of(opened)

    with pytest.raises(anthropic.AuthenticationError, match="is unknown") as wrong:
        client_of({**opened, "token": "wrong"}).messages.create(**arguments(user("?")))
    assert wrong.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "the key or token is unknown or has expired"},
    }
    with pytest.raises(anthropic.PermissionDeniedError, match="not for trajectory 't'"):
        client_of({**opened, "token": other["token"]}).messages.create(**arguments(user("?")))
    with pytest.raises(anthropic.NotFoundError, match="no model 'claude'; this gateway serves tiny"):
        client.messages.create(**{**arguments(user("?")), "model": "claude"})
    with pytest.raises(anthropic.BadRequestError, match="'max_tokens'"):
        client.messages.create(**{**arguments(user("?")), "max_tokens": 0})
    owner = client_of({**opened, "token": "key-of-the-owner"})
    assert owner.messages.create(**arguments(user("?"))).content[0].text == "ok"
    with pytest.raises(anthropic.InternalServerError, match="out of memory"):
        client.messages.create(**arguments(user("?")))
    with pytest.raises(anthropic.RateLimitError, match="2 calls a minute") as late:
        owner.messages.create(**arguments(user("?")))
    assert int(late.value.response.headers["retry-after"]) > 0
    assert len(served.steps("t")) == 1


def test_an_engine_failure_in_a_stream_raises_in_the_client(serve, tiny_tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, "one two three")
    heard = engine.generate

    async def dying(request: Any) -> Any:
        await heard(request)
        raise EngineError("the device was lost")

    engine.generate = dying
    client = client_of(serve(engine).open(trajectory_uid="t"))
    with (
        pytest.raises(anthropic.APIStatusError, match="the device was lost"),
        client.messages.stream(**arguments(user("?"))) as stream,
    ):
        for _ in stream:
            pass


def test_models_are_listed_and_looked_up(scripted) -> None:
    _, client = scripted(aliases=["team/small"])
    assert [(model.id, model.display_name) for model in client.models.list()] == [
        ("tiny", "tiny"),
        ("team/small", "team/small"),
    ]
    assert client.models.retrieve("tiny").type == "model"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("other")


def test_a_tools_error_is_shown_to_the_model() -> None:
    from midstream.gateway.dialects.anthropic import CountRequest, conversation

    block = {"type": "tool_result", "tool_use_id": "a", "content": "no such file"}
    turns = [{"role": "user", "content": [{**block, "is_error": failed}]} for failed in (True, False)]
    messages, _ = conversation(CountRequest.model_validate({"model": "tiny", "messages": turns}))
    assert [message["content"] for message in messages] == ["Error: no such file", "no such file"]
