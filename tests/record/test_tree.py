"""The token tree for any conversation: each prompt extends recorded tokens by a delta, or has a branch reason."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.sampling import SamplingParams
from midstream.core.types import Message, Step
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.record.recorder import Call, Recorder, RoleEngine
from midstream.record.tree import PREFIX_IGNORE

TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a":1,  "b": "ü"}}\n</tool_call>'
REPLIES = ("Fine.", " spaced  out ", "naïve – 你好", CALL, f"I add.\n{CALL}", "")


def a_recorder() -> Recorder:
    return Recorder("t", "p", seed=1)


def say(recorder: Recorder, tokenizer: ChatTokenizer, reply: str, messages: list[Message], tools: Any = ()) -> Step:
    role_engine = RoleEngine(ScriptedEngine(tokenizer, reply), tokenizer, True)
    call = Call(messages=tuple(messages), tools=tools, sampling=SamplingParams(max_tokens=200))
    return asyncio.run(recorder.call(role_engine, call))[0]


def told(step: Step, tokenizer: ChatTokenizer) -> Message:
    """The reply as a client sends it back: calls parsed, arguments re-serialized."""
    reply = tokenizer.format.read(step.text, step.tools)
    message: Message = {"role": "assistant", "content": reply.content}
    if reply.tool_calls:
        message["tool_calls"] = [
            {
                "id": f"c{place}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(json.loads(call.arguments), sort_keys=True)},
            }
            for place, call in enumerate(reply.tool_calls)
        ]
    return message


def answers(message: Message) -> list[Message]:
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in message.get("tool_calls", ())]
    return results or [{"role": "user", "content": "And then?"}]


def whole(step: Step) -> tuple[int, ...]:
    return step.prompt_ids + step.response_ids


moves = st.lists(
    st.tuples(
        st.sampled_from(["go on", "ask again", "edit", "new", "tools"]), st.sampled_from(REPLIES), st.integers(0, 9)
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(moves=moves)
def test_every_prompt_extends_its_parent_or_has_a_branch_reason(
    tiny_tokenizer: ChatTokenizer, moves: list[tuple[str, str, int]]
) -> None:
    recorder = a_recorder()
    histories: list[tuple[list[Message], Any]] = []  # each ends where the agent may reply again
    for number, (move, reply, pick) in enumerate(moves):
        messages, tools = histories[pick % len(histories)] if histories else ([{"role": "user", "content": "0"}], TOOLS)
        expected = "" if histories and len(messages) > 1 else None
        if move == "new" or not histories:
            messages, expected = (
                [{"role": "user", "content": f"topic {number}"}],
                "new_conversation" if histories else "",
            )
        elif move == "ask again":
            messages, expected = messages[:1], ""
        elif move == "edit" and len(messages) > 1:
            messages = [messages[0], {"role": "assistant", "content": f"I never said {number}"}, messages[-1]]
            messages[-1] = {"role": "user", "content": "Why?"}
            expected = None
        elif move == "tools" and len(messages) > 1:
            tools, expected = (() if tools else TOOLS), None
        step = say(recorder, tiny_tokenizer, reply, messages, tools)
        rendered = tiny_tokenizer.render(messages, tools)
        if step.parent is None:
            assert step.prompt_ids == rendered
        else:
            parent = recorder.steps[step.parent]
            assert step.prompt_ids[: len(whole(parent))] == whole(parent)
            assert parent.tools == tools and len(parent.messages) < len(messages)
        if expected is not None:
            assert step.branch_reason == expected
        if move == "go on" and expected == "" and len(messages) > 1:
            assert step.parent is not None
        message = told(step, tiny_tokenizer)
        histories.append(([*messages, message, *answers(message)], tools))


def a_call(recorder: Recorder, tokenizer: ChatTokenizer) -> tuple[list[Message], Message]:
    messages: list[Message] = [{"role": "user", "content": "1 + 1?"}]
    return messages, told(say(recorder, tokenizer, CALL, messages, TOOLS), tokenizer)


def test_differently_formatted_arguments_are_the_same_call(tiny_tokenizer: Any) -> None:
    recorder = a_recorder()
    messages, message = a_call(recorder, tiny_tokenizer)
    same = say(recorder, tiny_tokenizer, "2", [*messages, message, *answers(message)], TOOLS)
    assert (same.parent, same.branch_reason) == (0, "")
    message["tool_calls"][0]["function"]["arguments"] = '{"a": 1, "b": "u"}'
    other = say(recorder, tiny_tokenizer, "2", [*messages, message, *answers(message)], TOOLS)
    assert (other.parent, other.branch_reason) == (None, "tool_rerendering")


@pytest.mark.parametrize(
    ("sampled", "spelled"),
    [
        ('{"a": 1.0}', '{"a":1}'),
        ('{"a": 1}', '{"a":1.0}'),
        ('{"a": 1e2, "b": [0.10, -0.0]}', '{"b":[0.1,0],"a":100}'),
        ('{"a": 12345678901234567890}', '{"a":12345678901234567000}'),
        ("{}", ""),
    ],
)
def test_differently_formatted_numbers_are_the_same_call(tiny_tokenizer: Any, sampled: str, spelled: str) -> None:
    """As JavaScript serializes them, which has one number type."""
    recorder, messages = a_recorder(), [{"role": "user", "content": "1 + 1?"}]
    call = f'<tool_call>\n{{"name": "add", "arguments": {sampled}}}\n</tool_call>'
    message = told(say(recorder, tiny_tokenizer, call, messages, TOOLS), tiny_tokenizer)
    message["tool_calls"][0]["function"]["arguments"] = spelled
    same = say(recorder, tiny_tokenizer, "2", [*messages, message, *answers(message)], TOOLS)
    assert (same.parent, same.branch_reason) == (0, "")


@pytest.mark.parametrize(("sampled", "spelled"), [("1", "1.5"), ("1", "true"), ("1", '"1"'), ("0", "false")])
def test_different_values_are_a_different_call(tiny_tokenizer: Any, sampled: str, spelled: str) -> None:
    recorder, messages = a_recorder(), [{"role": "user", "content": "1 + 1?"}]
    call = f'<tool_call>\n{{"name": "add", "arguments": {{"a": [{sampled}]}}}}\n</tool_call>'
    message = told(say(recorder, tiny_tokenizer, call, messages, TOOLS), tiny_tokenizer)
    message["tool_calls"][0]["function"]["arguments"] = f'{{"a": [{spelled}]}}'
    other = say(recorder, tiny_tokenizer, "2", [*messages, message, *answers(message)], TOOLS)
    assert (other.parent, other.branch_reason) == (None, "tool_rerendering")


def test_the_same_history_with_other_tools_starts_a_branch(tiny_tokenizer: Any) -> None:
    recorder = a_recorder()
    messages, message = a_call(recorder, tiny_tokenizer)
    step = say(recorder, tiny_tokenizer, "2", [*messages, message, *answers(message)])
    assert (step.parent, step.branch_reason) == (None, "changed_tools")


def test_a_sub_agent_has_its_own_conversation(tiny_tokenizer: Any) -> None:
    recorder = a_recorder()
    planner: list[Message] = [{"role": "system", "content": "Plan."}, {"role": "user", "content": "Go."}]
    helper: list[Message] = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Go."}]
    parents: list[tuple[int | None, str]] = []
    for _ in range(3):
        for talk in (planner, helper):
            step = say(recorder, tiny_tokenizer, "Fine.", talk)
            talk += [told(step, tiny_tokenizer), {"role": "user", "content": "More."}]
            parents.append((step.parent, step.branch_reason))
    assert parents == [(None, ""), (None, "new_conversation"), (0, ""), (1, ""), (2, ""), (3, "")]


def test_rendered_prompts_are_reused_for_identical_conversations_only(tiny_tokenizer: Any) -> None:
    recorder = a_recorder()
    messages: list[Message] = [{"role": "user", "content": "AAAA"}]
    first = say(recorder, tiny_tokenizer, "Fine.", messages)
    messages[0]["content"] = "BBBB"  # by a flow that edits what it has, in place
    second = say(recorder, tiny_tokenizer, "Fine.", messages)
    assert first.prompt_ids != second.prompt_ids == tiny_tokenizer.render(messages)

    def tool(default: Any) -> Any:
        parameters = {"type": "object", "properties": {"a": {"type": "integer", "default": default}}}
        return ({"type": "function", "function": {"name": "add", "parameters": parameters}},)

    for default in (1, True, 1.0):  # equal in Python, and not in a prompt
        step = say(recorder, tiny_tokenizer, "Fine.", messages, tool(default))
        assert step.prompt_ids == tiny_tokenizer.render(messages, tool(default))


def test_a_line_that_changes_per_request_does_not_start_a_new_root(tiny_tokenizer: ChatTokenizer) -> None:
    """The prompt keeps the tokens of the line's first version."""

    def conversation(number: int, *rest: Any) -> list[Any]:
        line = f"x-anthropic-billing-header: cc_version=2.1; cch={number};\n"
        return [
            {"role": "system", "content": f"{line}You are brief."},
            {"role": "user", "content": f"Hi. Used: {number} tokens"},
            *rest,
        ]

    def steps(patterns: tuple[str, ...]) -> list[Any]:
        recorder = Recorder("t", "p", seed=1, prefix_ignore=patterns)
        said: list[Any] = []
        for number in range(3):
            say(recorder, tiny_tokenizer, "Hello.", conversation(number, *said))
            said += [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}]
        return recorder.steps

    cut = steps((r"Used: \d+ tokens",))
    assert [step.branch_reason for step in cut] == ["", "changed_system_prompt", "changed_system_prompt"]
    whole = steps((*PREFIX_IGNORE, r"Used: \d+ tokens"))
    assert [(step.parent, step.branch_reason) for step in whole] == [(None, ""), (0, ""), (1, "")]
    for before, after in pairwise(whole):
        known = before.prompt_ids + before.response_ids
        assert after.prompt_ids[: len(known)] == known
    assert "cch=0;" in tiny_tokenizer.decode(whole[2].prompt_ids)
    assert "cch=2;" not in tiny_tokenizer.decode(whole[2].prompt_ids)
