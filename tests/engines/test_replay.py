"""Recorded calls are replayed exactly; unrecorded ones are errors."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from midstream.core.errors import EngineError, ModelError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint
from midstream.engines.base import Completion, Request
from midstream.engines.replay import ReplayEngine, ReplayRecorder
from midstream.engines.scripted import ScriptedEngine

CALL = Request(prompt_ids=(5, 6, 7), sampling=SamplingParams(seed=1), session="one", role="planner", top_log_probs=2)


def record(path: Path, tokenizer, calls: list[Request]) -> list[Completion]:
    numbers = iter(range(100))
    engine = ScriptedEngine(tokenizer, lambda request: f"answer {next(numbers)} é", policy_version=4)
    recording = ReplayRecorder(engine, path)

    async def go() -> list[Completion]:
        return [await recording.generate(call) for call in calls]

    answers = asyncio.run(go())
    recording.close()
    return answers


def replay(path: Path, *calls: Request) -> list[Completion]:
    engine = ReplayEngine(path)

    async def go() -> list[Completion]:
        return [await engine.generate(call) for call in calls]

    return asyncio.run(go())


def test_replayed_answers_match_their_calls(tiny_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "calls.jsonl"
    other = replace(CALL, sampling=SamplingParams(seed=2))
    held = replace(CALL, constraint=Constraint(kind="regex", grammar="a+"))
    answers = record(path, tiny_tokenizer, [CALL, other, CALL, held])
    assert replay(path, held, other, CALL, CALL) == [answers[3], answers[1], answers[0], answers[2]]
    # Neither the session nor a request for top log-probabilities matters.
    (reply,) = replay(path, replace(CALL, session="two", role="", top_log_probs=0))
    assert reply == replace(answers[0], top_log_probs=())


def test_a_second_recording_appends_to_the_file(tiny_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    first, second = record(path, tiny_tokenizer, [CALL]), record(path, tiny_tokenizer, [CALL])
    assert replay(path, CALL, CALL) == [*first, *second]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 3


def test_calls_are_distinguished_by_their_messages(tiny_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    calls = [replace(CALL, prompt_ids=(), messages=({"role": "user", "content": text},)) for text in ("a", "b")]
    answers = record(path, tiny_tokenizer, calls)
    assert replay(path, *calls[::-1]) == answers[::-1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (CALL, r"has 1 answers to a call of session 'one' as planner, and it was made once more"),
        (replace(CALL, sampling=SamplingParams(seed=9)), r"knows the prompt .* but not with .*seed=9"),
        (replace(CALL, prompt_ids=(5, 6, 8, 9)), r"of its 4 prompt tokens .* shares the first 2; then comes \[8, 9\]"),
    ],
)
def test_a_call_without_a_recorded_answer_is_an_error(tiny_tokenizer, tmp_path, call, says) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, tiny_tokenizer, [CALL])
    with pytest.raises(EngineError, match=says):
        replay(path, CALL, call)


@pytest.mark.parametrize("text", [None, "", "{oops", "[1]", '{"format": "another"}', '{"a": 1}'])
def test_a_file_that_is_not_a_recording_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "calls.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match="not a recording"):
        ReplayEngine(path)


def test_an_answer_with_a_missing_token_is_refused(tiny_tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    record(path, tiny_tokenizer, [CALL])
    header, call = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    call["completion"]["ids"].pop()
    path.write_text("\n".join(json.dumps(line) for line in (header, call)))
    with pytest.raises(ModelError, match="log-probabilities"):
        ReplayEngine(path)
