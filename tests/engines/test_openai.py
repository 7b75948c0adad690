"""Any chat completions server can answer for a role; a failing server fails the call with its reason."""

from __future__ import annotations

import asyncio

import pytest

from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, EngineError, Unsupported
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, FinishReason, Status
from midstream.engines import openai
from midstream.engines.base import Completion, Request
from midstream.engines.openai import OpenAIEngine

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 6 right?"})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "FIRST_WAIT_S", 0.01)


def ask(engine: OpenAIEngine, **sampling) -> Completion:
    request = Request(prompt_ids=(), messages=MESSAGES, sampling=SamplingParams(**sampling))
    return asyncio.run(engine.generate(request))


def test_a_call_carries_the_messages_and_every_setting(chat_server, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "sesame")
    chat_server.answers = ["Yes."]
    engine = OpenAIEngine(f"{chat_server.url}/", "judge-7b", api_key_env="A_KEY")
    reply = ask(engine, max_tokens=9, temperature=0.3, top_p=0.9, stop=("\n",), seed=5)
    assert (reply.text, reply.ids, reply.log_probs, reply.finish_reason) == (
        "Yes.",
        (),
        (),
        FinishReason.STOP,
    )
    assert chat_server.asked == [
        {
            "path": "/v1/chat/completions",
            "messages": list(MESSAGES),
            "model": "judge-7b",
            "max_tokens": 9,
            "temperature": 0.3,
            "top_p": 0.9,
            "stop": ["\n"],
            "seed": 5,
        }
    ]
    assert chat_server.headers[0]["Authorization"] == "Bearer sesame"


def test_a_truncated_reply_has_finish_reason_length_and_a_missing_one_is_empty(chat_server) -> None:
    chat_server.answers = [{"choices": [{"message": {"content": "Ye"}, "finish_reason": "length"}]}]
    assert ask(OpenAIEngine(chat_server.url)).finish_reason is FinishReason.LENGTH
    chat_server.answers = [{"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}]
    assert ask(OpenAIEngine(chat_server.url)).text == ""


def test_a_busy_or_failing_server_is_retried(chat_server) -> None:
    chat_server.answers = [(429, {}), (503, b"starting"), "Yes."]
    assert ask(OpenAIEngine(chat_server.url)).text == "Yes."
    assert len(chat_server.asked) == 3


def test_a_server_that_keeps_failing_is_reported_with_its_last_error(chat_server) -> None:
    chat_server.answers = [(500, b"out of memory")]
    with pytest.raises(EngineError, match="after 4 tries; last: HTTP 500: out of memory"):
        ask(OpenAIEngine(chat_server.url))
    assert len(chat_server.asked) == 4


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_retried(chat_server, status: int) -> None:
    chat_server.answers = [(status, {"error": "no such model"})]
    with pytest.raises(EngineError, match=f"HTTP {status}.*no such model"):
        ask(OpenAIEngine(chat_server.url))
    assert len(chat_server.asked) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>hello</html>",
        b"",
        b"\xff\xfe",
        [],
        {},
        {"choices": []},
        {"choices": [{"text": "old style"}]},
        {"choices": ["x"]},
        {"choices": [{"message": {"content": ["a", "list"]}}]},
        {"choices": [{"message": {"content": 7}}]},
    ],
)
def test_an_invalid_response_is_an_engine_error(chat_server, garbage) -> None:
    chat_server.answers = [(200, garbage)]
    with pytest.raises(EngineError, match="not a chat completion"):
        ask(OpenAIEngine(chat_server.url))


def test_slow_and_absent_servers_are_errors(chat_server) -> None:
    chat_server.answers = [1.0]
    with pytest.raises(EngineError, match="Timeout"):
        ask(OpenAIEngine(chat_server.url, timeout_s=0.05))
    with pytest.raises(EngineError, match="ConnectError"):
        ask(OpenAIEngine("http://127.0.0.1:9/v1", timeout_s=0.5))


@pytest.mark.parametrize("sampling", [{"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_settings_without_an_api_field_are_errors(chat_server, sampling) -> None:
    with pytest.raises(Unsupported, match=next(iter(sampling))):
        ask(OpenAIEngine(chat_server.url), **sampling)


@pytest.mark.parametrize(
    "part",
    [
        {"constraint": Constraint(kind="regex", grammar="a")},
        {"top_log_probs": 1},
        {"on_tokens": lambda ids, log_probs: None},
        {"tools": ({"type": "function", "function": {"name": "f"}},)},
    ],
)
def test_features_a_remote_model_lacks_are_errors(chat_server, part) -> None:
    request = Request(prompt_ids=(), messages=MESSAGES, sampling=SamplingParams(), **part)
    with pytest.raises(Unsupported, match=next(iter(part))):
        asyncio.run(OpenAIEngine(chat_server.url).generate(request))


def test_penalties_are_passed_on(chat_server) -> None:
    chat_server.answers = ["Yes."]
    ask(OpenAIEngine(chat_server.url), presence_penalty=0.5, frequency_penalty=-1.0)
    assert (chat_server.asked[0]["presence_penalty"], chat_server.asked[0]["frequency_penalty"]) == (0.5, -1.0)


def test_a_missing_key_is_named(chat_server) -> None:
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        OpenAIEngine(chat_server.url, api_key_env="NO_SUCH_KEY")


def test_a_server_answers_for_one_role_and_is_not_trained_on(chat_server, tiny_path) -> None:
    from midstream.core.types import Task
    from midstream.learn.config import TrainConfig
    from midstream.learn.run.setup import build
    from midstream.rollouts import groups_of

    def run(**verifier):
        rules = {"engine": "rules"}
        config = parse_config(
            TrainConfig,
            {
                "policy": {"model": str(tiny_path), "lora": {"rank": 2}, "dtype": "float32"},
                "tasks": {"sources": [{"type": "calculate"}]},
                "flow": {
                    "name": "agentflow",
                    "tools": ["calculator"],
                    "settings": {"notation": "compact", "fields": [], "max_turns": 2},
                    "roles": {
                        "analysis": rules,
                        "executor": rules,
                        "verifier": {"engine": chat_server.url, **verifier},
                    },
                },
                "rollout": {"sampling": {"max_tokens": 4}},
            },
        )
        attempts = groups_of([Task(id="t", prompt="What is 2 * 3?")], 1, prefix="r", seed=0)
        return asyncio.run(build(config).manager(None).run(attempts))[0]

    chat_server.answers = ["No.", "Yes, it is."]
    trajectory = run(model="judge", sampling={"temperature": 0.0})
    assert [step.role for step in trajectory.steps] == ["planner", "verifier"] * 2 + ["generator"]
    assert [turn["verdict"] for turn in trajectory.metadata["turns"]] == [False, True]
    for step in trajectory.steps:
        assert step.trainable == (step.role != "verifier")
        assert any(step.loss_mask) == step.trainable
    planner, _, again, _, generator = trajectory.steps
    for before, step in ((planner, again), (again, generator)):
        known = before.prompt_ids + before.response_ids
        assert step.prompt_ids[: len(known)] == known
    assert chat_server.asked[0]["temperature"] == 0.0
    assert chat_server.asked[0]["messages"][-1]["content"].endswith("[verifier] yes or no")

    chat_server.answers = [(401, {"error": "who are you?"})]
    failed = run()
    assert failed.status is Status.FAILED
    assert "who are you?" in failed.error
