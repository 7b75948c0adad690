"""OpenAI's responses and text completions, with the `openai` package as the client."""

from __future__ import annotations

import json
from typing import Any

from tests.gateway.dialects.openai_clients import CALCULATOR, client_of, user
from tests.gateway.served import TWO_CALLS, Verdict

from midstream.engines.scripted import ScriptedEngine

FLAT: Any = {"type": "function", "strict": False, **CALCULATOR["function"]}


def test_text_completions_take_text_or_token_ids(sampled) -> None:
    served, client = sampled
    ids = served.gateway.tokenizer.encode("The capital")
    by_text = client.completions.create(model="tiny", prompt="The capital", max_tokens=5, seed=1, echo=True)
    by_ids = client.completions.create(model="tiny", prompt=list(ids), max_tokens=5, seed=1, logprobs=2)
    one, two = served.steps("t")
    assert one.prompt_ids == two.prompt_ids == ids and one.response_ids == two.response_ids
    assert by_text.choices[0].text == "The capital" + by_ids.choices[0].text
    assert by_ids.choices[0].logprobs.token_logprobs == list(two.rollout_log_probs)
    assert by_text.usage.completion_tokens == 5


def test_a_text_completion_streams(scripted) -> None:
    _, client = scripted("one two three")
    # OpenAI's own server has null for the finish reason of all but the last chunk, which its client's types do not.
    client = client.with_options(_extra_kwargs={"_strict_response_validation": False})
    chunks = list(
        client.completions.create(
            model="tiny", prompt="count:", echo=True, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "count:one two three"
    assert chunks[-1].usage is not None and chunks[-2].choices[0].finish_reason == "stop"


def test_a_response_continues_an_earlier_one(scripted) -> None:
    served, client = scripted("Hello.", "You are welcome.")
    first = client.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    second = client.responses.create(
        model="tiny", input="Thanks", instructions="Be brief.", previous_response_id=first.id
    )
    _, two = served.steps("t")
    assert (first.output_text, second.output_text) == ("Hello.", "You are welcome.")
    assert (first.status, second.previous_response_id) == ("completed", first.id)
    assert (two.parent, two.branch_reason) == (0, "")
    assert second.usage.input_tokens == len(two.prompt_ids)


def test_instructions_apply_to_one_response_and_system_items_to_the_conversation(scripted) -> None:
    served, client = scripted("1", "2", "3", "4")
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


def test_function_calls_are_answered_in_the_next_input(scripted) -> None:
    served, client = scripted(TWO_CALLS, "2 and 4.")
    items: list[Any] = [user("1+1 and 2+2?")]
    first = client.responses.create(model="tiny", input=items, tools=[FLAT])
    calls = [item for item in first.output if item.type == "function_call"]
    assert first.output_text == "Both." and [json.loads(c.arguments) for c in calls][1] == {"expression": "2+2"}
    items += first.output
    items += [
        {"type": "function_call_output", "call_id": c.call_id, "output": r} for c, r in zip(calls, "24", strict=True)
    ]
    second = client.responses.create(model="tiny", input=items, tools=[FLAT])
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
    ids = {"id", "call_id", "parsed_arguments", "parsed"}
    plain = [[_without(item.to_dict(), ids) for item in response.output] for response in (whole, streamed)]
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


def test_a_response_is_parsed_into_the_requested_object(sampled) -> None:
    served, client = sampled
    parsed = client.responses.parse(model="tiny", input="Is it?", text_format=Verdict, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Verdict)
    text_format: Any = {"format": {"type": "json_schema", "name": "verdict", "schema": Verdict.model_json_schema()}}
    cut = client.responses.create(
        model="tiny", input=[*_input("Is it?"), *parsed.output, user("Sure?")], max_output_tokens=3, text=text_format
    )
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert served.steps("t")[1].parent == 0


def _input(text: str) -> list[Any]:
    return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]
