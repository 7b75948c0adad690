"""Sessions stay with their replica while it answers, and move to others while it does not."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from midstream.core.errors import ConfigError, EngineError, EngineUnreachable
from midstream.core.sampling import SamplingParams
from midstream.engines.base import Completion, Request
from midstream.engines.publication import Publication
from midstream.engines.replicas import Replicas
from midstream.engines.scripted import ScriptedEngine


class Replica(ScriptedEngine):
    """Replies with its name; while `down`, it is unreachable (after that many tokens)."""

    def __init__(self, tokenizer, name: str, version: int = 0) -> None:
        super().__init__(tokenizer, name, name=name, policy_version=version, context_length=100 + version)
        self.down: int | None = None
        self.asked: list[str] = []
        self.left: list[str] = []
        self.loads = 0

    def leave(self, session: str) -> None:
        self.left.append(session)

    async def load_weights(self, publication: Publication) -> None:
        self.loads += 1
        if self.down is not None:
            raise EngineUnreachable(f"{self.name} is down")
        await asyncio.sleep(0)
        await super().load_weights(publication)

    async def generate(self, request: Request) -> Completion:
        self.asked.append(request.session)
        if self.down is not None:
            if self.down and request.on_tokens is not None:
                request.on_tokens((5,) * self.down, (-1.0,) * self.down)
            raise EngineUnreachable(f"{self.name} is down")
        return await super().generate(request)


@pytest.fixture
def parts(tiny_tokenizer) -> list[Replica]:
    return [Replica(tiny_tokenizer, name, version) for version, name in enumerate(("north", "east", "south"))]


def ask(replicas: Replicas, *sessions: str, **parts) -> list[Completion]:
    async def go() -> list[Completion]:
        requests = [
            Request(prompt_ids=(5,), sampling=SamplingParams(), session=session, **parts) for session in sessions
        ]
        return await asyncio.gather(*map(replicas.generate, requests))

    return asyncio.run(go())


SESSIONS = [f"s{number}" for number in range(60)]


def test_sessions_stay_with_their_replica_and_all_replicas_are_used(parts) -> None:
    first = [reply.text for reply in ask(Replicas(parts), *SESSIONS)]
    # Another process with the same replicas finds the same ones.
    assert [reply.text for reply in ask(Replicas(parts), *SESSIONS)] == first
    assert min(Counter(first).values()) >= 10 and len(set(first)) == 3


def test_an_answer_has_the_version_of_its_replica(parts) -> None:
    replicas = Replicas(parts)
    for reply in ask(replicas, *SESSIONS[:10]):
        assert reply.policy_version == [part.name for part in parts].index(reply.text)
    assert replicas.policy_version == 0 and replicas.context_length == 100


def test_sessions_of_a_failed_replica_are_spread_and_others_stay(parts) -> None:
    replicas = Replicas(parts, rest_s=60)
    before = [reply.text for reply in ask(replicas, *SESSIONS)]
    parts[0].down = 0
    # Detected once, then skipped.
    ask(replicas, SESSIONS[before.index("north")])
    parts[0].asked.clear()
    after = [reply.text for reply in ask(replicas, *SESSIONS)]
    assert parts[0].asked == []
    moved = {now for was, now in zip(before, after, strict=True) if was == "north"}
    assert moved == {"east", "south"}
    assert all(was == now for was, now in zip(before, after, strict=True) if was != "north")


def test_a_failed_replica_is_retried_after_a_pause(parts) -> None:
    replicas = Replicas(parts, rest_s=0.0)
    before = [reply.text for reply in ask(replicas, *SESSIONS)]
    parts[1].down = 0
    ask(replicas, *SESSIONS)
    parts[1].down = None
    assert [reply.text for reply in ask(replicas, *SESSIONS)] == before


def test_with_every_replica_down_the_call_fails_and_later_ones_still_try(parts) -> None:
    replicas = Replicas(parts, rest_s=60)
    for part in parts:
        part.down = 0
    with pytest.raises(EngineUnreachable):
        ask(replicas, "one")
    parts[2].down = None
    assert ask(replicas, "one")[0].text == "south"


def test_a_call_that_failed_after_a_token_is_not_retried_elsewhere(parts) -> None:
    replicas = Replicas(parts)
    received_tokens: list[int] = []
    for part in parts:
        part.down = 2
    with pytest.raises(EngineUnreachable):
        ask(replicas, "one", on_tokens=lambda ids, log_probs: received_tokens.extend(ids))
    assert received_tokens == [5, 5]
    assert sum(len(part.asked) for part in parts) == 1


def test_errors_that_are_not_outages_are_passed_on(parts, tiny_tokenizer) -> None:
    broken = ScriptedEngine(tiny_tokenizer, EngineError("out of memory"))
    with pytest.raises(EngineError, match="out of memory"):
        ask(Replicas([broken, broken]), "one")


def test_calls_without_a_session_are_spread(tiny_tokenizer) -> None:
    parts = [Replica(tiny_tokenizer, name) for name in ("one", "other")]
    for part in parts:
        part.latency_s = 0.01
    assert Counter(reply.text for reply in ask(Replicas(parts), *[""] * 10)) == {"one": 5, "other": 5}


def test_replicas_with_one_name_are_distinguished(tiny_tokenizer) -> None:
    parts = [Replica(tiny_tokenizer, "same") for _ in range(3)]
    ask(Replicas(parts), *SESSIONS)
    assert min(len(part.asked) for part in parts) >= 10


def test_leave_reaches_every_replica_and_no_replicas_is_an_error(parts) -> None:
    Replicas(parts).leave("one")
    assert [part.left for part in parts] == [["one"]] * 3
    with pytest.raises(ConfigError, match="at least one"):
        Replicas([])


NEW = Publication(Path("nowhere"), 9, "planner")


def test_a_replica_that_missed_two_adapters_loads_both(parts) -> None:
    replicas = Replicas(parts, rest_s=0.0)
    parts[1].down = 0
    for adapter in ("planner", "solver"):
        asyncio.run(replicas.load_weights(Publication(Path("nowhere"), 9, adapter)))
    parts[1].down = None
    ask(replicas, *SESSIONS)
    assert [part.loads for part in parts] == [2, 4, 2] and not any(replicas.behind)


def test_a_replica_that_missed_new_weights_loads_them_once_before_its_next_call(parts) -> None:
    replicas = Replicas(parts, rest_s=0.0)
    parts[1].down = 0
    asyncio.run(replicas.load_weights(NEW))
    assert [part.policy_version for part in parts] == [9, 1, 9] and replicas.policy_version == 9
    parts[1].down = None
    replies = ask(replicas, *SESSIONS)
    assert {(one.text, one.policy_version, one.adapter) for one in replies} == {
        (part.name, 9, "planner") for part in parts
    }
    assert [part.loads for part in parts] == [1, 2, 1]


def test_new_weights_that_no_replica_can_load_are_an_error(parts) -> None:
    for part in parts:
        part.down = 0
    with pytest.raises(EngineUnreachable):
        asyncio.run(Replicas(parts).load_weights(NEW))
