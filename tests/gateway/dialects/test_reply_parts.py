"""The parts of a reply are the same items in a stream, in the whole answer and when they are sent back."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.conftest import Served
from tests.gateway.served import events
from tests.waiting import LIMIT_S

from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": 1.0}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"at": {"type": "number"}}}
REPLIES = {
    "text": "Hello.",
    "call": CALL,
    "text and call": f"Look.\n{CALL}",
    "text around a call": f"Look.\n{CALL}\nSeen.",
    "text around two calls": f"One.\n{CALL}\nTwo.\n{CALL}\nThree.",
    "thought and text": "<think>Hm.</think>Hello.",
    "thought and call": f"<think>Hm.</think>{CALL}",
    "only a thought": "<think>Hm.</think>",
    "a thought that does not end": "<think>Hm",
    "nothing": "",
}
LIMITS = (200, 20, 45)
"""Token limits: enough for every reply, and too few for some of its parts."""
STRIPPED = "stripped_thinking"
"""The branch reason if the template drops the thoughts of an earlier reply."""
by_reply = pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)


@pytest.fixture
def post(serve, thinking_tokenizer: ChatTokenizer):
    """Starts a gateway with one reply; returns it and a function that posts to its trajectory."""

    def start(reply: str, **settings: Any):
        served: Served = serve(ScriptedEngine(thinking_tokenizer, reply), **settings)
        opened = served.open(trajectory_uid="t")

        def post(path: str, body: Any, **headers: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {opened['token']}"} | {
                k.replace("_", "-"): v for k, v in headers.items()
            }
            body = {"model": "tiny", **body}
            return httpx.post(
                f"{opened['base_url']}{path}", json=body, headers=headers, timeout=LIMIT_S
            ).raise_for_status()

        return served, post

    return start


def response(**more: Any) -> dict[str, Any]:
    tool = {"type": "function", "name": "look", "parameters": PARAMETERS}
    return {"input": "?", "tools": [tool], **more}


def message(**more: Any) -> dict[str, Any]:
    tool = {"name": "look", "input_schema": PARAMETERS}
    return {"messages": [{"role": "user", "content": "?"}], "max_tokens": 200, "tools": [tool], **more}


def chat(**more: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}}
    return {"messages": [{"role": "user", "content": "?"}], "tools": [tool], **more}


@by_reply
def test_the_items_of_a_stream_are_those_of_the_response(post, reply: str) -> None:
    _, post = post(reply)
    for limit in LIMITS:
        same_items(events(post("/responses", response(stream=True, max_output_tokens=limit)).text))


def same_items(told: list[Any]) -> None:
    whole = told[-1]["response"]
    added = [(e["output_index"], e["item"]) for e in told if e["type"] == "response.output_item.added"]
    done = [(e["output_index"], e["item"]) for e in told if e["type"] == "response.output_item.done"]
    assert done == list(enumerate(whole["output"])) and done
    assert [(n, item["id"], item["type"]) for n, item in added] == [(n, i["id"], i["type"]) for n, i in done]
    assert len({item["id"] for _, item in done}) == len(done)
    for place, item in done:
        said = "".join(e["delta"] for e in told if e.get("item_id") == item["id"] and e["type"].endswith(".delta"))
        assert said == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        assert {e["output_index"] for e in told if e.get("item_id") == item["id"]} <= {place}
    assert [e["sequence_number"] for e in told] == list(range(len(told)))
    assert whole["created_at"] == told[0]["response"]["created_at"]


@by_reply
def test_a_replayed_response_is_the_same_whole_and_streamed(post, reply: str) -> None:
    served, post = post(reply)
    for limit in LIMITS:
        asked, key = response(max_output_tokens=limit), {"Idempotency_Key": str(limit)}
        first, again = (post("/responses", asked, **key).json() for _ in range(2))
        streamed = events(post("/responses", {**asked, "stream": True}, **key).text)
        assert first == again == streamed[-1]["response"]
    assert len(served.steps("t")) == len(LIMITS)


@by_reply
def test_the_items_of_a_response_extend_its_tokens_when_sent_back(post, reply: str) -> None:
    served, post = post(reply)
    output = post("/responses", response()).json()["output"]
    results = [
        {"type": "function_call_output", "call_id": item["call_id"], "output": "2"}
        for item in output
        if item["type"] == "function_call"
    ]
    for given in (output, [{name: v for name, v in item.items() if name not in ("id", "status")} for item in output]):
        following = [{"role": "user", "content": "?"}, *given, *results, {"role": "user", "content": "And?"}]
        post("/responses", response(input=following))
    _, *others = served.steps("t")
    assert {(step.parent, step.branch_reason) for step in others} == {
        (None, STRIPPED) if "</think>" in reply else (0, "")
    }


def test_texts_around_a_call_keep_their_order(post) -> None:
    _, post = post(REPLIES["text around a call"])
    output = post("/responses", response()).json()["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "message"]
    assert [item["content"][0]["text"].strip() for item in output[::2]] == ["Look.", "Seen."]


REQUIRED = """id object created_at completed_at status incomplete_details model previous_response_id instructions output
error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs
temperature reasoning usage max_output_tokens max_tool_calls store background service_tier metadata safety_identifier
prompt_cache_key"""


def test_a_response_has_every_field_of_open_responses_and_its_sampling(post) -> None:
    _, post = post("Hello.", sampling={"temperature": 0.5})
    format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    body = response(stream=True, top_p=0.9, text={"format": format}, store=False)
    told = events(post("/responses", body).text)
    for one in (told[0]["response"], told[-1]["response"]):
        assert set(REQUIRED.split()) <= set(one)
        assert (one["temperature"], one["top_p"], one["presence_penalty"], one["store"]) == (0.5, 0.9, 0.0, True)
        assert one["text"] == {"format": {**format, "description": None, "strict": False}}
    assert told[0]["response"]["completed_at"] is None
    assert told[-1]["response"]["completed_at"] >= told[-1]["response"]["created_at"]


def test_thought_tokens_are_counted(post, thinking_tokenizer: ChatTokenizer) -> None:
    _, post = post("<think>Hm, let me see.</think>Hello.")
    thought = len(thinking_tokenizer.encode("<think>Hm, let me see."))
    assert post("/responses", response()).json()["usage"]["output_tokens_details"]["reasoning_tokens"] == thought
    assert post("/messages", message()).json()["usage"]["output_tokens_details"]["thinking_tokens"] == thought
    details = post("/chat/completions", chat()).json()["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == thought


def streamed_message(text: str) -> dict[str, Any]:
    """The message that the events add up to."""
    told = events(text)
    whole = told[0]["message"]
    for one in told:
        if one["type"] == "content_block_start":
            assert one["index"] == len(whole["content"])
            whole["content"].append(
                {**one["content_block"], **({"input": ""} if "input" in one["content_block"] else {})}
            )
        elif one["type"] == "content_block_delta":
            block, delta = whole["content"][one["index"]], one["delta"]
            name = {"input_json_delta": "input", "text_delta": "text", "thinking_delta": "thinking"}.get(
                delta["type"], "signature"
            )
            block[name] += delta.get("partial_json", delta.get(name))
        elif one["type"] == "message_delta":
            whole |= one["delta"]
            whole["usage"] |= one["usage"]
    for block in whole["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
    return whole


@by_reply
def test_the_stream_of_a_message_adds_up_to_it(post, reply: str) -> None:
    served, post = post(reply)
    for limit in LIMITS:
        asked, key = message(max_tokens=limit), {"Idempotency_Key": str(limit)}
        streamed = streamed_message(post("/messages", {**asked, "stream": True}, **key).text)
        whole = post("/messages", asked, **key).json()
        again = streamed_message(post("/messages", {**asked, "stream": True}, **key).text)
        assert streamed == whole == again and whole["content"]
        assert set(whole) == set(MESSAGE.split()) and set(whole["usage"]) == set(USAGE.split())
        blocks = {block["type"]: block for block in whole["content"]}
        assert blocks.get("text", {"citations": None})["citations"] is None
        assert blocks.get("tool_use", {"caller": {"type": "direct"}})["caller"] == {"type": "direct"}
    assert len(served.steps("t")) == len(LIMITS)


MESSAGE = "id type role content model stop_reason stop_sequence stop_details usage container"
USAGE = """cache_creation cache_creation_input_tokens cache_read_input_tokens inference_geo input_tokens output_tokens
output_tokens_details server_tool_use service_tier"""


@by_reply
def test_the_blocks_of_a_message_extend_its_tokens_when_sent_back(post, reply: str) -> None:
    served, post = post(reply)
    content = post("/messages", message()).json()["content"]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "2"}
        for block in content
        if block["type"] == "tool_use"
    ]
    turns = [{"role": "assistant", "content": content}, {"role": "user", "content": results or "And?"}]
    post("/messages", message(messages=[{"role": "user", "content": "?"}, *turns]))
    step = served.steps("t")[1]
    assert (step.parent, step.branch_reason) == ((None, STRIPPED) if "</think>" in reply else (0, ""))


def test_a_cut_reply_reports_it_even_after_a_call(post, thinking_tokenizer: ChatTokenizer) -> None:
    _, post = post(f"{CALL}\n{CALL}")
    limit = len(thinking_tokenizer.encode(CALL)) + 8
    choice = post("/chat/completions", chat(max_tokens=limit)).json()["choices"][0]
    assert choice["finish_reason"] == "length" and len(choice["message"]["tool_calls"]) == 1
    told = post("/messages", message(max_tokens=limit)).json()
    assert told["stop_reason"] == "max_tokens" and told["content"][0]["type"] == "tool_use"
    whole = post("/responses", response(max_output_tokens=limit)).json()
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert whole["output"][0]["status"] == "completed"
    last = events(post("/chat/completions", chat(max_tokens=limit, stream=True)).text)[-1]
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_text_completion_streams_thoughts_unparsed(post) -> None:
    _, post = post("<think>Hm.</think>Hello.")
    told = events(post("/completions", {"prompt": "?", "stream": True}).text)
    said = "".join(choice["text"] for one in told for choice in one["choices"])
    assert said == post("/completions", {"prompt": "?"}).json()["choices"][0]["text"] == "<think>Hm.</think>Hello."
