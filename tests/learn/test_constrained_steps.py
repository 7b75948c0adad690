"""A step under a constraint is a sample of the constrained policy: its ratio is 1 before the first update, in process
and through the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.waiting import LIMIT_S

from midstream import AgentFlowBase, api, register
from midstream.core.config import Config
from midstream.core.sampling import SamplingParams
from midstream.core.types import Constraint, Step
from midstream.engines.base import Completion, Request
from midstream.evaluate.runs import read_rows
from midstream.learn.data.altered_sampling import shares
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.record.store import Store
from midstream.rewards import component

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Lima", "Oslo"]}, "seats": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "seats"],
    "additionalProperties": False,
}
ANSWER = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


@component("digits_for_constraints")
def digits(answer: str | None) -> float:
    return sum(map(str.isdigit, answer or "")) / max(len(answer or ""), 1)


class NodeSettings(Config):
    nodes: tuple[str, ...]


@register("nodes_for_constraints")
class Nodes(AgentFlowBase):
    """Its roles are known at run time only. Each chooses, calls a tool, answers in JSON, and adds a free word."""

    settings = NodeSettings

    @classmethod
    def roles_for(cls, settings: Config) -> tuple[str, ...]:
        assert isinstance(settings, NodeSettings)
        return settings.nodes

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        messages = [{"role": "user", "content": kwargs["task"]}]
        for node in self.roles_for(self.config):
            chosen = await self.chat(messages, role=node, response_format=Constraint.one_of("yes", "no", "maybe"))
            messages += [chosen.message, {"role": "user", "content": "Look."}]
            called = await self.chat(messages, role=node, tools=[TOOL], tool_choice="required")
            assert called.tool_calls[0].values["city"] in ("Lima", "Oslo")
            answered = await self.chat(messages, role=node, response_format=ANSWER)
            await self.chat(messages, role=node, max_tokens=3)
            self.answer = answered.content
        return len(self.steps)


def settings(tiny_path: Path, run: Path, max_steps: int, **parts: Any) -> dict[str, Any]:
    return {
        "policy": {"model": str(tiny_path), "dtype": "float32", "numerics": "exact", "lora": {"rank": 2}},
        "algorithm": {"name": "rloo", "entropy_coef": 0.01, "kl": {"coef": 0.1}},  # replaced by one in `parts`
        "optimizer": {"lr": 0.01},
        **parts,
        "trainer": {
            "max_steps": max_steps,
            "eval_every": 0,
            "test_tasks": 0,
            "threads": 1,
            "deterministic": True,
            "run_dir": str(run),
        },
    }


def check(run: Path) -> None:
    """Sampler, learner and reference agree at the first step, and the policy moved afterwards."""
    first, second = read_rows(run / "metrics.jsonl")
    assert first["mismatch/mean_abs"] == 0 and first["max:log_ratio"] == 0 and first["kl"] == 0
    assert first["altered_sampling"] == 0 and first["grad_norm"] > 0
    assert second["kl"] != 0 and second["mismatch/mean_abs"] == 0


def steps_of(store: Path) -> list[Step]:
    with Store(store) as opened:
        return [step for one in opened.trajectories.recorded() for step in one.trajectory.steps]


def test_a_flow_with_roles_of_run_time_trains_on_constrained_steps(tiny_path: Path, tmp_path: Path) -> None:
    config = settings(
        tiny_path,
        tmp_path / "run",
        2,
        tasks={"sources": [{"type": "direct"}]},
        flow={"name": "nodes_for_constraints", "settings": {"nodes": ["first", "second"]}},
        reward={"components": {"digits_for_constraints": 1.0}},
        rollout={"tasks_per_step": 1, "group_size": 3, "sampling": {"max_tokens": 60}},
    )
    assert api.train(config, callbacks=()).status == "finished"
    check(tmp_path / "run")
    steps = steps_of(next((tmp_path / "run").glob("*.sqlite")))
    kinds = [None if step.constraint is None else step.constraint.kind for step in steps[:8]]
    assert kinds == ["lark", "lark", "json_schema", None] * 2
    assert [step.role for step in steps[:8]] == ["first"] * 4 + ["second"] * 4
    assert not any("sampling" in step.metadata for step in steps)


Record = Callable[..., list[Step]]


@pytest.fixture
def record(make_policy: Any, serve: Any, tmp_path: Path) -> Record:
    """Two attempts of an agent over HTTP; `change` changes the completions of the engine."""

    def record(change: Callable[[Request, Completion], Completion] = lambda _, completion: completion) -> list[Step]:
        policy = make_policy(rank=0, sharp=False, numerics="exact")
        generate = policy.engine.generate

        async def changed(request: Request) -> Completion:
            return change(request, await generate(request))

        policy.engine.generate = changed
        served = serve(policy.engine, store=tmp_path / "gateway.sqlite")
        for number in range(2):
            opened = served.open(prompt_uid="a", group_size=2, task={"prompt": "Where?"})
            token = {"Authorization": f"Bearer {opened['token']}"}
            with httpx.Client(base_url=opened["base_url"], headers=token, timeout=60) as client:
                for asked in ({"response_format": ANSWER}, {"tools": [TOOL], "tool_choice": "required"}, {}):
                    body = {"model": "tiny", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 60}
                    answered = client.post("/chat/completions", json={**body, **asked, "seed": number})
                    assert answered.status_code == 200, answered.text
            owner = {"Authorization": f"Bearer {opened['owner_token']}"}
            completed = f"{served.url}/complete_trajectory/{opened['trajectory_uid']}"
            httpx.post(completed, json={"reward": float(number)}, headers=owner, timeout=LIMIT_S).raise_for_status()
        return steps_of(tmp_path / "gateway.sqlite")

    return record


def test_steps_recorded_by_the_gateway_have_a_ratio_of_one(record: Record, tiny_path: Path, tmp_path: Path) -> None:
    steps = record()
    assert [step.constraint.kind if step.constraint else None for step in steps[:3]] == ["json_schema", "lark", None]
    config = settings(
        tiny_path,
        tmp_path / "run",
        1,
        algorithm={"name": "rloo", "kl": {"coef": 0.1, "reference": str(tiny_path)}},
        reward={"components": {"given": 1.0}},
        rollout={"tasks_per_step": 1, "source": {"store": str(tmp_path / "gateway.sqlite"), "wait_s": 1}},
    )
    assert api.train(config, callbacks=()).status == "finished"
    (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert row["mismatch/mean_abs"] == 0 and row["max:log_ratio"] == 0 and row["kl"] == 0
    assert row["altered_sampling"] == 0 and row["grad_norm"] > 0


def test_an_engine_that_reports_the_whole_vocabulary_makes_altered_steps(record: Record, make_policy: Any) -> None:
    decoder = make_policy(rank=0, sharp=False, numerics="exact").decoder

    def whole(request: Request, completion: Completion) -> Completion:
        """As a vLLM server does: the tokens once more, as a prompt."""
        sequence = TokenSequence(request.prompt_ids, completion.ids, request.sampling.temperature)
        log_probs = score(decoder, [sequence]).log_probs.detach().tolist()
        return replace(completion, log_probs=tuple(log_probs), over_allowed=False)

    steps = record(whole)
    held, called, free = steps[:3]
    assert held.constraint is called.constraint is None
    assert held.metadata["sampling"] == {"constraint": "json_schema"} and "sampling" not in free.metadata
    found = score(decoder, [TokenSequence.of(step) for step in steps]).log_probs.tolist()
    assert found == [value for step in steps for value in step.rollout_log_probs or ()]
    altered = shares(steps)
    assert altered["altered_sampling"] == altered["altered_sampling/constraint"] > 0.2
