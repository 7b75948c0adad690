"""Environments of verifiers (v1): `mental_sums` beside this file, as if it were installed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers.v1", reason="make test-verifiers installs it")

import verifiers.v1 as vf
from tests.gateway.conftest import Start, start

from midstream import api
from midstream.agents.config import FlowConfig
from midstream.core.errors import ConfigError, TaskError
from midstream.core.types import Status, Task, Trajectory
from midstream.engines.base import Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.scripted import ScriptedEngine
from midstream.gateway.in_process import InProcessGateway
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rewards.components import resolve
from midstream.rollouts import AgentFlowWorker, Attempt
from midstream.rollouts.config import SamplingConfig
from midstream.tasks.environments import environment_tasks, make_environment

__all__ = ["start"]
pytestmark = pytest.mark.environments
ENV = "mental_sums"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


def played(tokenizer: ChatTokenizer, task: Task, says: Callable[[Request], str]) -> Trajectory:
    """One attempt at `task` by a policy that says what `says` returns."""

    async def attempt() -> Trajectory:
        engine = RoleEngine(ScriptedEngine(tokenizer, says), tokenizer, True)
        async with InProcessGateway() as endpoint:
            flow = FlowConfig.model_validate({"name": "verifiers_agent"})
            sampling = SamplingConfig(max_tokens=64)
            worker = AgentFlowWorker(flow, {"policy": engine}, sampling=sampling, endpoint=endpoint, timeout_s=120)
            return await worker.run(Attempt(task=task, uid="u", prompt_uid="p", seed=1))

    return asyncio.run(attempt())


def test_its_tasks_are_split_by_question() -> None:
    tasks = environment_tasks("verifiers", ENV, {"taskset": {"count": 90}}, 0)
    sizes = {split: tasks.size(split) for split in ("train", "val", "test")}
    assert sum(size or 0 for size in sizes.values()) == 90 and all(sizes.values())
    task = tasks.get("test", 0)
    assert tasks.get("test", sizes["test"] or 0) == task, "a finite split repeats"
    position = task.metadata["environment"]["seed"]
    assert task.question == f"What is {position} + 7? Reply with the number." and task.answer == position + 7


def test_an_episode_is_played_and_rewarded_by_it(tiny_tokenizer: ChatTokenizer) -> None:
    task = environment_tasks("verifiers", ENV, {}, 0).get("train", 0)
    right = played(tiny_tokenizer, task, lambda request: f"It is {task.answer}.")
    assert right.status is Status.COMPLETED and right.answer == f"It is {task.answer}."
    assert right.metadata["environment"]["parts"] == {"right": 1.0, "short": 0.1}
    assert right.metadata["environment"]["metrics"] == {"replies": 1.0}
    component = resolve("environment").function
    assert component(right).total == pytest.approx(1.1)
    (step,) = right.steps
    assert step.messages[0]["content"] == task.question and step.response_ids
    wrong = played(tiny_tokenizer, task, lambda request: "I do not know, and I say so in many words.")
    assert component(wrong).total == 0.0


def test_its_tools_are_called(tiny_tokenizer: ChatTokenizer) -> None:
    task = environment_tasks("verifiers", "sums_with_tool", {}, 0).get("train", 0)

    def says(request: Request) -> str:
        if request.messages[-1]["role"] == "tool":
            return f"{request.messages[-1]['content']}"
        assert [tool["function"]["name"] for tool in request.tools] == ["add"]
        call = {"name": "add", "arguments": {"a": task.answer - 7, "b": 7}}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    made = played(tiny_tokenizer, task, says)
    assert made.status is Status.COMPLETED, made.error
    assert made.metadata["environment"]["rewards"] == [1.0] and len(made.steps) == 2
    assert made.steps[1].prompt_ids[: len(made.steps[0].prompt_ids)] == made.steps[0].prompt_ids


def test_what_does_not_exist_or_fit_is_refused() -> None:
    with pytest.raises(TaskError, match="cannot load the taskset 'no_such_sums'"):
        environment_tasks("verifiers", "no_such_sums", {}, 0)
    with pytest.raises(TaskError, match=r"(?s)cannot load the taskset 'mental_sums'.*counts"):
        environment_tasks("verifiers", ENV, {"taskset": {"counts": 3}}, 0)
    named = {"type": "verifiers", "env": ENV, "settings": {}, "seed": 0}
    with pytest.raises(ConfigError, match="runs its own agent"):
        make_environment(named)


def test_it_is_trained_on_unchanged(tiny_path: Path, tmp_path: Path) -> None:
    settings = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "verifiers", "env": ENV}]},
        "flow": {"name": "verifiers_agent"},
        "reward": {"components": {"environment": 1.0}, "success": "environment"},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 8}},
        "trainer": {"max_steps": 2, "val_tasks": 1, "test_tasks": 1, "threads": 1, "run_dir": str(tmp_path / "run")},
    }
    assert api.train(settings, callbacks=()).status == "finished"
    with Store(tmp_path / "run" / "store.sqlite", read_only=True) as store:
        made = list(store.trajectories.iterate(channel="train"))
    assert len(made) == 16 and all(one.status is Status.COMPLETED and one.steps for one in made)
    assert all(one.rewards["environment"] is not None for one in made)


def test_its_training_client_gets_the_tokens_that_the_gateway_recorded(tiny_path: Path, start: Start) -> None:
    """`type: train`, as prime-rl uses it: prompts are rendered there, and sampled by POST /inference/v1/generate."""
    from renderers.configs import DefaultRendererConfig

    from midstream.agents.verifiers.loading import load_env
    from midstream.tasks.environments.verifiers_adapter import load

    served = start("It is 7.")
    opened = served.open(trajectory_uid="t")
    environment = load_env(ENV, {})
    client = vf.TrainClientConfig(
        base_url=f"{served.url}{opened.path}",
        api_key_var="MIDSTREAM_NO_KEY",
        headers={"x-api-key": opened.token},
        renderer=DefaultRendererConfig(),
        renderer_model_name=str(tiny_path),
    )

    async def episode() -> Any:
        async with environment.serving():
            task = load(ENV, {}).task(0)
            return await environment.run_episode(task, vf.ModelContext(model="tiny", client=client))

    (trace,) = asyncio.run(episode()).traces
    assert trace.ok and trace.reward == pytest.approx(1.1), trace.errors
    (step,) = served.steps("t")
    branch = trace.branches[-1]
    ids = [token for node in branch.nodes for token in node.token_ids]
    assert ids == [*step.prompt_ids, *step.response_ids]
    log_probs = [value for node in branch.nodes for value in node.logprobs or ()]
    assert log_probs[-len(step.response_ids) :] == pytest.approx(list(step.rollout_log_probs or ()))
