"""Attempts repeated without a role: the others keep what they did, as far as the role had no influence on it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.sampling import SamplingParams
from midstream.core.types import Trajectory
from midstream.engines.base import Request
from midstream.record.store import Store
from midstream.rollouts.reruns import rerun_of, trained_roles


@register("test_three_hands")
class ThreeHands(AgentFlowBase):
    """Two roles that do not see each other, and a third that sees both."""

    roles = ("left", "right", "both")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        texts = [(await self.chat([{"role": "user", "content": "go"}], role=role)).text for role in ("left", "right")]
        seen = await self.chat([{"role": "user", "content": "+".join(texts)}], role="both")
        self.answer = seen.text
        return 3


class Counting:
    """Replies differently each time."""

    def __init__(self) -> None:
        self.heard: list[Request] = []

    def __call__(self, request: Request) -> str:
        self.heard.append(request)
        return f"{request.role}{len(self.heard)}"


def run(
    make_worker, attempt, role: str, store: Store | None = None, reply: str = ""
) -> tuple[Trajectory, Trajectory, Any]:
    says = Counting()
    worker = make_worker(says, "test_three_hands", worker={"store": store})

    async def both() -> tuple[Trajectory, Trajectory]:
        given = attempt()
        original = await worker.run(given)
        return original, await worker.run(rerun_of(given, original, role, reply))

    return *asyncio.run(both()), says


def test_a_role_without_influence_on_another_leaves_its_reply_as_it_was(make_worker, attempt) -> None:
    original, rerun, says = run(make_worker, attempt, "left")
    assert [step.text for step in original.steps] == ["left1", "right2", "both3"]
    assert [step.text for step in rerun.steps] == ["", "right2", "both4"]
    # Only the role whose prompt changed asked its engine again.
    assert [request.role for request in says.heard] == ["left", "right", "both", "both"]
    assert rerun.steps[1].response_ids == original.steps[1].response_ids
    assert rerun.steps[2].messages[-1]["content"] == "+right2"


def test_the_last_role_leaves_everything_before_it_as_it_was(make_worker, attempt) -> None:
    _, rerun, says = run(make_worker, attempt, "both", reply="nothing")
    assert [step.text for step in rerun.steps] == ["left1", "right2", "nothing"]
    assert len(says.heard) == 3 and rerun.answer == "nothing"


def test_a_rerun_is_recorded_linked_and_never_trained_on(make_worker, attempt, tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        original, rerun, _ = run(make_worker, attempt, "left", store)
        kept = store.trajectories.get(rerun.uid)
        assert [one.uid for one in store.trajectories.iterate(channel="rerun")] == ["u-without-left"]
    assert kept.metadata["rerun_of"] == original.uid and kept.metadata["without"] == "left"
    assert kept.prompt_uid == original.prompt_uid
    assert trained_roles(original) == ["left", "right", "both"] and trained_roles(kept) == []
    assert not any(any(step.loss_mask) for step in kept.steps)


@register("test_asks_twice")
class AsksTwice(AgentFlowBase):
    """The same question twice, after a role that does not matter."""

    roles = ("idle", "asked")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        question = [{"role": "user", "content": "go"}]
        await self.chat(question, role="idle")
        self.answer = " ".join([(await self.chat(question, role="asked")).text for _ in range(2)])
        return 3


def test_a_rerun_that_is_resumed_gets_the_replies_after_those_it_had(make_worker, attempt, tmp_path: Path) -> None:
    class Dies(BaseException):
        pass

    @register("test_asks_and_dies")
    class AsksAndDies(AsksTwice):
        dies = False

        async def chat(self, messages: Any, role: str = "policy", *args: Any, **kwargs: Any) -> Any:
            if self.dies and len(self.steps) == 2:
                raise Dies
            return await super().chat(messages, role, *args, **kwargs)

    async def both(store: Store) -> list[str | None]:
        worker = make_worker(Counting(), "test_asks_and_dies", worker={"store": store, "resume": True})
        given = attempt()
        original = await worker.run(given)
        rerun = rerun_of(given, original, "idle")
        AsksAndDies.dies = True
        with pytest.raises(Dies):
            await worker.run(rerun)
        AsksAndDies.dies = False
        resumed = await worker.run(rerun)
        assert resumed.metadata["resumed"] == {"steps": 2, "actions": 0}
        return [original.answer, resumed.answer]

    with Store(tmp_path / "store.sqlite") as store:
        assert asyncio.run(both(store)) == ["asked2 asked3"] * 2


def test_equal_calls_get_their_recorded_replies_in_order(make_worker, attempt) -> None:
    worker = make_worker(Counting(), "test_asks_twice")

    async def both() -> list[str | None]:
        given = attempt()
        original = await worker.run(given)
        return [original.answer, (await worker.run(rerun_of(given, original, "idle"))).answer]

    assert asyncio.run(both()) == ["asked2 asked3"] * 2
