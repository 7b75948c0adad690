"""The treatment of each argument: used, hint, ignored, dropped and counted, or refused by name."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import pytest
from anthropic.types.beta import message_create_params as anthropic_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import BaseModel
from tests.gateway.conftest import Start
from tests.gateway.served import Opened, Served, error

from midstream.gateway.dialects.anthropic_request import MessagesRequest
from midstream.gateway.dialects.arguments import Treatment, describe_arguments, is_empty
from midstream.gateway.dialects.chat import ChatRequest
from midstream.gateway.dialects.completions import CompletionRequest
from midstream.gateway.dialects.responses_request import ResponseRequest

HELLO: list[Any] = [{"role": "user", "content": "Hello?"}]
SEARCH = {"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}}
ASKED: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/chat/completions": (ChatRequest, {"model": "tiny", "messages": HELLO}),
    "/responses": (ResponseRequest, {"model": "tiny", "input": HELLO}),
    "/messages": (MessagesRequest, {"model": "tiny", "max_tokens": 9, "messages": HELLO}),
    "/completions": (CompletionRequest, {"model": "tiny", "prompt": "Hello?"}),
}
PARAMETERS: dict[str, tuple[type[Any], ...]] = {
    "/chat/completions": (
        chat_params.CompletionCreateParamsNonStreaming,
        chat_params.CompletionCreateParamsStreaming,
    ),
    "/responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    "/messages": (
        anthropic_params.MessageCreateParamsNonStreaming,
        anthropic_params.MessageCreateParamsStreaming,
    ),
    "/completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
}
HEADERS = {"betas"}
"""Parameters of the clients' methods that become headers."""
by_path = pytest.mark.parametrize("path", ASKED)


def ask(opened: Opened, path: str, **more: Any) -> httpx.Response:
    return opened.post(path, {**ASKED[path][1], **more})


def top_level(path: str, what: Treatment) -> list[str]:
    found = describe_arguments(ASKED[path][0])
    return [name for name, done, _ in found if done == what and "." not in name]


def refused(response: httpx.Response) -> str:
    body = response.json()
    assert response.status_code == 400, body
    return body["error"]["message"]


@by_path
def test_every_argument_of_the_clients_is_in_the_table(path: str) -> None:
    known = {name for name, _, _ in describe_arguments(ASKED[path][0])}
    sent = {name for kind in PARAMETERS[path] for name in get_type_hints(kind)} - HEADERS
    assert sent <= known


@by_path
def test_an_unsupported_argument_is_refused_by_name(start: Start, path: str) -> None:
    opened = start().open()
    names = [*top_level(path, Treatment.REFUSED), "temprature"]
    for name in names:
        assert f"'{name}'" in refused(ask(opened, path, **{name: {"some": "wish"}}))
    assert opened.steps == ()


@by_path
def test_an_empty_argument_counts_as_left_out(start: Start, path: str) -> None:
    opened = start().open()
    model, asked = ASKED[path]
    optional = [name for name, field in model.model_fields.items() if not field.is_required() and name not in asked]
    names = [*optional, "unknown"]
    for nothing in (None, {}, [], {"type": "disabled"}):
        # A `tool_choice` with any type is a request.
        empty = [name for name in names if name != "tool_choice" or nothing != {"type": "disabled"}]
        response = ask(opened, path, **dict.fromkeys(empty, nothing))
        assert response.status_code == 200, f"{nothing!r}: {response.text}"
    for nothing in ("", "disabled", False):
        response = ask(opened, path, **dict.fromkeys(["unknown", *top_level(path, Treatment.REFUSED)], nothing))
        assert response.status_code == 200, f"{nothing!r}: {response.text}"
    assert all("hints" not in step.metadata and "left_out" not in step.metadata for step in opened.steps)


def test_top_k_minus_one_is_off_and_required_arguments_stay_required(start: Start) -> None:
    opened = start().open()
    for path in ("/chat/completions", "/messages"):
        assert ask(opened, path, top_k=-1).status_code == 200
    assert "sampling" not in opened.steps[0].metadata
    assert "'max_tokens'" in refused(ask(opened, "/messages", max_tokens=None))
    assert "'messages'" in refused(ask(opened, "/chat/completions", messages=[]))


@by_path
def test_ignored_arguments_have_no_effect(start: Start, path: str) -> None:
    opened = start().open()
    assert ask(opened, path).status_code == 200
    for name in top_level(path, Treatment.IGNORED):
        wish: Any = 1 if name == "best_of" else {"some": "wish"}
        assert ask(opened, path, **{name: wish}).status_code == 200, name
    first, *others = (step.prompt_ids for step in opened.steps)
    assert set(others) <= {first}


def test_hints_are_kept_with_the_step(start: Start) -> None:
    opened = start().open()
    thinking, kept = {"type": "adaptive"}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    ask(opened, "/chat/completions", reasoning_effort="high", verbosity="low")
    ask(opened, "/responses", reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "high"})
    ask(opened, "/messages", thinking=thinking, output_config={"effort": "high"}, context_management=kept)
    assert [step.metadata["hints"] for step in opened.steps] == [
        {"reasoning_effort": "high", "verbosity": "low"},
        {"reasoning": {"effort": "low", "summary": "auto"}, "text.verbosity": "high"},
        {"thinking": thinking, "output_config.effort": "high"},
    ]
    hides = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    assert "'clear_tool_uses_20250919' would hide history" in refused(
        ask(opened, "/messages", context_management=hides)
    )


def test_hosted_tools_are_dropped_and_counted(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    served = start()
    opened = served.open()
    function = {"type": "function", "function": SEARCH}
    ask(opened, "/chat/completions", tools=[function, {"type": "custom", "custom": {"name": "write"}}])
    ask(opened, "/responses", tools=[{"type": "function", **SEARCH}, {"type": "web_search", "filters": None}])
    ask(opened, "/messages", tools=[anthropic_tool(), {"type": "web_search_20250305", "name": "web_search"}])
    assert [[tool["function"]["name"] for tool in step.tools] for step in opened.steps] == [["search"]] * 3
    assert [step.metadata["left_out"] for step in opened.steps] == [["custom"], ["web_search"], ["web_search_20250305"]]
    assert served.metric('midstream_left_out_tools_total{tool="web_search"}') == 2
    assert [one.message for one in caplog.records if "'web_search'" in one.message]


def anthropic_tool() -> dict[str, Any]:
    return {"name": "search", "input_schema": SEARCH["parameters"], "defer_loading": True}


@pytest.mark.parametrize(
    ("path", "tools", "choice", "told"),
    [
        ("/responses", [{"type": "web_search"}], {"type": "web_search"}, "'web_search'"),
        ("/responses", [{"type": "web_search"}], "required", "'web_search'"),
        ("/responses", [{"type": "function", **SEARCH}], {"type": "allowed_tools", "mode": "auto"}, "'allowed_tools'"),
        ("/chat/completions", [{"type": "custom"}], {"type": "custom", "custom": {"name": "write"}}, "'custom'"),
        ("/messages", [{"type": "bash_20250124", "name": "bash"}], {"type": "tool", "name": "bash"}, "'bash'"),
        ("/messages", [{"type": "bash_20250124", "name": "bash"}], {"type": "any"}, "'bash_20250124'"),
    ],
)
def test_a_required_tool_that_is_not_available_is_refused_by_name(
    start: Start, path: str, tools: list[Any], choice: Any, told: str
) -> None:
    opened = start().open()
    message = refused(ask(opened, path, tools=tools, tool_choice=choice))
    assert f"tool_choice requires {told}" in message


def test_functions_in_a_namespace_are_shown_under_their_names(start: Start) -> None:
    call = '<tool_call>\n{"name": "close", "arguments": {}}\n</tool_call>'
    collides = call.replace("close", "agents__search")
    served = start([call, collides, "Done.", call])
    opened = served.open()
    close = {"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}}
    agents = {"type": "namespace", "name": "agents", "tools": [close, {"type": "function", **SEARCH}]}
    tools = [{"type": "function", **SEARCH}, agents]
    first = ask(opened, "/responses", tools=tools).json()["output"]
    assert [(item["name"], item["namespace"]) for item in first] == [("close", "agents")]
    history = [*HELLO, *first, {"type": "function_call_output", "call_id": first[0]["call_id"], "output": "ok"}]
    second = ask(opened, "/responses", tools=tools, input=history).json()["output"]
    assert [(item["name"], item["namespace"]) for item in second] == [("search", "agents")]
    history += [*second, {"type": "function_call_output", "call_id": second[0]["call_id"], "output": "ok"}]
    ask(opened, "/responses", tools=tools, input=history)
    assert [tool["function"]["name"] for tool in opened.steps[0].tools] == ["search", "close", "agents__search"]
    assert [(step.parent, step.branch_reason) for step in opened.steps] == [(None, ""), (0, ""), (1, "")]
    streamed = ask(opened, "/responses", tools=tools, stream=True).text
    assert streamed.count('"namespace":"agents"') >= 2


def test_counted_tokens_equal_the_prompts_tokens(start: Start) -> None:
    opened = start().open()
    for choice in ({"type": "none"}, {"type": "auto"}):
        asked = {"tools": [anthropic_tool()], "tool_choice": choice, "thinking": {"type": "adaptive"}}
        counted = opened.post("/messages/count_tokens", {"model": "tiny", "messages": HELLO, **asked}).json()
        ask(opened, "/messages", **asked)
        assert counted["input_tokens"] == len(opened.steps[-1].prompt_ids)


def test_a_template_gets_the_hints_it_reads(start: Start, hinted: Any) -> None:
    served: Served = hinted
    opened = served.open()
    reply = ask(opened, "/chat/completions", reasoning_effort="high").json()["choices"][0]["message"]
    history = [*HELLO, reply, {"role": "user", "content": "And?"}]
    ask(opened, "/chat/completions", messages=history, reasoning_effort="high")
    ask(opened, "/chat/completions", messages=history, reasoning_effort="low")
    ask(opened, "/chat/completions", messages=history)
    texts = [served.gateway.tokenizer.decode(step.prompt_ids) for step in opened.steps]
    assert [text.split("\n")[0] for text in texts] == ["effort high", "effort high", "effort low", "effort none"]
    assert [step.metadata.get("template") for step in opened.steps[1:3]] == [
        {"reasoning_effort": "high"},
        {"reasoning_effort": "low"},
    ]
    assert [step.branch_reason for step in opened.steps] == ["", "", "changed_hints", "changed_hints"]


@pytest.fixture
def hinted(tiny_path: Any, tmp_path: Any) -> Any:
    """A gateway whose model's template reads `reasoning_effort`."""
    from transformers import AutoTokenizer

    from midstream.engines.chat import ChatTokenizer
    from midstream.engines.scripted import ScriptedEngine

    plain = AutoTokenizer.from_pretrained(str(tiny_path), local_files_only=True)
    plain.chat_template = "effort {{ reasoning_effort | default('none') }}\n" + plain.chat_template
    tokenizer = ChatTokenizer(plain, frozenset({plain.eos_token_id}), "hinted")
    served = Served(ScriptedEngine(tokenizer, "Hello."), tokenizer, tmp_path / "hinted.sqlite")
    yield served
    served.stop()


def test_is_empty() -> None:
    for value in (None, False, "", [], {}, "disabled", "off", {"type": "disabled"}, {"effort": None, "format": {}}):
        assert is_empty(value), value
    for value in (0, "auto", [None], {"type": "adaptive"}, {"keep": "all"}, "none"):
        assert not is_empty(value), value


def test_an_unknown_tool_type_is_one_label_of_the_counter(start: Start) -> None:
    served = start()
    opened = served.open()
    for number in range(3):
        ask(opened, "/responses", tools=[{"type": f"made_up_{number}"}])
    assert served.metric('midstream_left_out_tools_total{tool="other"}') == 3


def test_an_incomplete_tool_choice_is_an_error(start: Start) -> None:
    status, _, message = error(ask(start().open(), "/responses", tool_choice={"type": "function"}))
    assert status == 400 and "name" in message


@pytest.mark.parametrize("name", ["seed", "max_tokens", "top_k"])
def test_a_number_that_is_too_large_is_refused_by_name(start: Start, name: str) -> None:
    asked: dict[str, Any] = {name: 10**400}
    status, _, told = error(start().open().chat(**asked))
    assert status == 400 and name in told
