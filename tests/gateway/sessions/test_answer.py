"""The tokens of a thought are counted exactly, and in linear time."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest

from midstream.core.types import FinishReason, Step
from midstream.engines.chat import ChatTokenizer
from midstream.gateway.sessions.answer import BLOCK, answer_of


def step_of(tokenizer: ChatTokenizer, text: str) -> Step:
    ids = tokenizer.encode(text)
    return Step(
        prompt_ids=(1,),
        response_ids=ids,
        rollout_log_probs=(-1.0,) * len(ids),
        trajectory_uid="t",
        prompt_uid="p",
        step_index=0,
        text=text,
        finish_reason=FinishReason.STOP,
    )


def shortest_prefix(tokenizer: ChatTokenizer, step: Step, thought: str) -> int:
    """The definition: the least number of tokens whose text contains the whole thought."""

    def contains(size: int) -> bool:
        deltas = tokenizer.format.parser().feed(tokenizer.decode(step.response_ids[:size]))
        return "".join(delta.reasoning for delta in deltas) == thought

    return bisect_left(range(len(step.response_ids)), True, key=contains)


@pytest.mark.parametrize("words", [1, 20, BLOCK, 100])
@pytest.mark.parametrize("after", ["", "The answer is 4.", "🙂" * 90], ids=["nothing", "text", "emoji"])
def test_thought_tokens_are_the_shortest_prefix_with_the_thought(
    thinking_tokenizer: ChatTokenizer, words: int, after: str
) -> None:
    step = step_of(thinking_tokenizer, f"<think>{'schön 🙂 word ' * words}{'🙂' * words}</think>{after}")
    answer = answer_of(step, thinking_tokenizer)
    assert answer.thought_tokens == shortest_prefix(thinking_tokenizer, step, answer.reply.reasoning) > 0


def test_a_thought_is_parsed_a_fixed_number_of_times(
    thinking_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = 0
    make = type(thinking_tokenizer.format).parser

    def counting(*args: Any) -> Any:
        parser = make(*args)
        feed = parser.feed

        def counted(text: str) -> Any:
            nonlocal parsed
            parsed += len(text)
            return feed(text)

        parser.feed = counted
        return parser

    monkeypatch.setattr(type(thinking_tokenizer.format), "parser", counting)
    text = f"<think>{'a word ' * 3000}</think>Done."
    answer_of(step_of(thinking_tokenizer, text), thinking_tokenizer)
    assert parsed <= 3 * len(text)  # once for the reply, at most twice for the end of the thought
