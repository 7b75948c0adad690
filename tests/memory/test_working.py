"""Working memory: all exchanges in order, within a token budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.core.types import ToolCall
from midstream.memory.working import Exchange, TurnRecord, WorkingMemory


def words(text: str) -> int:
    return len(text.split())


def memory_of(budget: int) -> WorkingMemory:
    return WorkingMemory("Answer with tools.", "What is asked?", words, budget)


RESULT = "fact " * 100


def test_messages_are_in_order_and_end_with_the_next_request() -> None:
    memory = memory_of(500)
    memory.remember(Exchange("planner", "What is asked?\n[planner 1/3]", "search: Peru"))
    memory.remember(Exchange("generator", "Lima\n[generator]", "Lima"))
    assert memory.messages("[verifier]") == (
        {"role": "system", "content": "Answer with tools."},
        {"role": "user", "content": "What is asked?\n[planner 1/3]"},
        {"role": "assistant", "content": "search: Peru"},
        {"role": "user", "content": "Lima\n[generator]"},
        {"role": "assistant", "content": "Lima"},
        {"role": "user", "content": "[verifier]"},
    )


def test_within_the_budget_each_prompt_extends_the_previous_one() -> None:
    memory = memory_of(1000)
    before = memory.messages("")[:-1]
    for turn in range(4):
        memory.remember(Exchange("planner", f"{RESULT}\n[planner {turn}/4]", "search: Peru"))
        after = memory.messages("")[:-1]
        assert after[: len(before)] == before
        before = after
    assert memory.shortened == 0


def test_over_budget_only_old_results_are_shortened() -> None:
    memory = memory_of(250)
    remembered: list[Exchange] = []
    for turn in range(5):
        remembered.append(Exchange("planner", f"{RESULT}\n[planner {turn}/5]", f"search: {turn}"))
        memory.remember(remembered[-1])
        assert memory.tokens() <= 250
    assert memory.shortened > 0
    assert memory.exchanges[0] == remembered[0], "the question stays whole"
    for kept, was in zip(memory.exchanges, remembered, strict=True):
        assert (kept.role, kept.answered) == (was.role, was.answered)
        assert kept == was or (" [...] " in kept.asked and len(kept.asked) < len(was.asked))
    assert memory.exchanges[-1].asked.endswith("[planner 4/5]")


def test_text_that_cannot_be_shortened_is_kept_over_budget() -> None:
    memory = memory_of(64)
    memory.remember(Exchange("planner", "question " * 100, "answer " * 100))
    assert memory.tokens() > 64
    assert memory.shortened == 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 60)), min_size=1, max_size=8),
    budget=st.integers(200, 900),
)
def test_at_most_one_result_exceeds_the_budget(sizes, budget) -> None:
    memory = WorkingMemory("system", "?", len, budget)
    for asked, answered in sizes:
        memory.remember(Exchange("planner", "x" * asked, "y" * answered))
    if memory.tokens() > budget:
        assert all(len(remembered.asked) <= 160 for remembered in memory.exchanges[1:]), "there was more to cut"


def test_found_returns_the_results_of_successful_calls() -> None:
    memory = memory_of(100)
    for ok, result in ((True, "Lima"), (False, "Error: no such tool"), (True, "10"), (True, "")):
        call = ToolCall(tool="search", arguments={}, ok=ok, result=result)
        memory.turns.append(TurnRecord(len(memory.turns) + 1, "", call))
    assert memory.found() == ["Lima", "10"]


@pytest.mark.parametrize("field", ["exchanges", "turns"])
def test_memories_share_no_state(field: str) -> None:
    one, other = memory_of(100), memory_of(100)
    one.remember(Exchange("planner", "secret", "secret"))
    one.turns.append(TurnRecord(1, "", ToolCall(tool="echo", arguments={}, ok=True, result="secret")))
    assert getattr(other, field) == []
