"""Tool calls of several families through the gateway: results continue the sampled tokens, malformed calls count."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from tests.engines.formats.conftest import declared, tokenizer_like
from tests.engines.formats.test_turns import TURNS
from tests.waiting import LIMIT_S

from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine

__all__ = ["tokenizer_like"]

TOOLS = [declared("get_weather", {"city": {"type": "string"}}, ["city"])]


def ask(opened: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's reply to `messages`."""
    answer = httpx.post(
        f"{opened['base_url']}/chat/completions",
        json={"model": "tiny", "messages": messages, "tools": TOOLS},
        headers={"Authorization": f"Bearer {opened['token']}"} if opened.get("token") else {},
        timeout=LIMIT_S,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def malformed(served: Any) -> float:
    """The gateway's count of malformed calls."""
    page = httpx.get(f"{served.url}/metrics", timeout=LIMIT_S).text
    (line,) = (line for line in page.splitlines() if line.startswith("midstream_malformed_calls_total "))
    return float(line.split()[1])


@pytest.mark.parametrize("template", ["gpt_oss", "gemma4", "kimi_k2", "glm4_5", "ministral"])
def test_a_conversation_with_tools_has_no_branch(
    template: str, serve, tokenizer_like: Callable[..., ChatTokenizer]
) -> None:
    tokens, text, _ = TURNS[template]
    tokenizer = tokenizer_like(template, *tokens, special=True, end=tokens[0])
    served = serve(ScriptedEngine(tokenizer, [text, text.replace(":0<", ":1<"), text.replace(":0<", ":2<")]))
    opened = served.open(trajectory_uid="t")
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How warm is it in Paris?"}]
    for _ in range(3):
        message = ask(opened, messages)
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": "21"}]
    steps = served.steps("t")
    assert [(step.parent, step.branch_reason) for step in steps] == [(None, ""), (0, ""), (1, "")]
    for one, two in pairwise(steps):
        assert two.prompt_ids[: len(one.prompt_ids + one.response_ids)] == one.prompt_ids + one.response_ids
    assert malformed(served) == 0


def test_malformed_calls_are_counted_and_stay_content(serve, tiny_tokenizer: ChatTokenizer) -> None:
    broken = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}\n</tool_call>'
    served = serve(ScriptedEngine(tiny_tokenizer, [broken]))
    message = ask(served.open(trajectory_uid="t"), [{"role": "user", "content": "?"}])
    assert message["content"] == broken and "tool_calls" not in message
    assert malformed(served) == 1
