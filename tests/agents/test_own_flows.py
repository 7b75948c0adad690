"""Flows from the seed documents, unchanged except for the import line."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from midstream import AgentFlowBase, MultiStepAgentFlow, SingleStepSingleTurnAgentFlow, Step, register
from midstream.agents.base import FlowSession
from midstream.core.errors import ConfigError, UserError
from midstream.core.types import Status, Trajectory
from midstream.rewards import RewardFunction


@register("flow_of_my_own")
class MyAgentFlow(SingleStepSingleTurnAgentFlow):
    async def run(self, sampling_params, **kwargs) -> int:
        messages = [{"role": "user", "content": kwargs["raw_prompt"]}]
        text, response_ids, prompt_ids = await self.gateway_generate(  # noqa: RUF059  # pyright: ignore
            trajectory_uid=kwargs["trajectory_uid"],
            prompt_uid=kwargs["prompt_uid"],
            messages=messages,
        )
        step = Step(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            reward=0.0,
            trajectory_uid=kwargs["trajectory_uid"],
            prompt_uid=kwargs["prompt_uid"],
            step_index=0,
            is_last=True,
        )
        await self.gateway_submit_steps([step])
        return 1


@register("flow_with_tools")
class ToolAgentFlow(MultiStepAgentFlow):
    async def run(self, sampling_params, **kwargs) -> int:
        messages = [{"role": "user", "content": kwargs["task"]}]
        step_index = 0

        while True:
            text, response_ids, prompt_ids = await self.gateway_generate(
                trajectory_uid=kwargs["trajectory_uid"], prompt_uid=kwargs["prompt_uid"], messages=messages
            )
            is_last = self.is_terminal(text)

            step = Step(
                prompt_ids=prompt_ids,
                response_ids=response_ids,
                step_index=step_index,
                is_last=is_last,
                trajectory_uid=kwargs["trajectory_uid"],
                prompt_uid=kwargs["prompt_uid"],
            )
            await self.gateway_submit_steps([step])

            if is_last:
                break

            messages.append({"role": "assistant", "content": text})
            tool_result = await self.execute_tool(text)
            messages.append({"role": "tool", "content": tool_result})
            step_index += 1

        return step_index + 1


@register("helpers_agent_flow")
class HelpersAgentFlow(AgentFlowBase):
    found: float | None = None

    async def run(self, sampling_params, **kwargs) -> int:
        own = {"trajectory_uid": kwargs["trajectory_uid"], "prompt_uid": kwargs["prompt_uid"]}
        messages = [{"role": "user", "content": "Summarize this document."}]
        text, response_ids, prompt_ids = await self.gateway_generate(
            **own, messages=messages, max_tokens=512, temperature=0.8
        )
        reply = [*messages, {"role": "assistant", "content": text}]
        self.found = await self.gateway_compute_reward(kwargs["trajectory_uid"], reply, dataset_fields={})
        step = Step(prompt_ids=prompt_ids, response_ids=response_ids, reward=self.found, is_last=True, **own)
        await self.gateway_submit_steps([step], channel="val")
        return 1

    def metadata(self) -> dict[str, Any]:
        return {"found": self.found}


def run(make_worker, says, name: str, attempt, **worker: Any) -> Trajectory:
    made = make_worker(says, name, tools=("calculator",), worker={"score": RewardFunction().score, **worker})
    return asyncio.run(made.run(attempt))


def test_one_prompt_one_response(make_worker, by_role, attempt) -> None:
    trajectory = run(make_worker, by_role(policy="6"), "flow_of_my_own", attempt())
    assert (trajectory.status, trajectory.answer, trajectory.reward) == (Status.COMPLETED, "6", 1.0)
    (step,) = trajectory.steps
    assert (step.trainable, step.is_last, step.metadata["channel"]) == (True, True, "train")
    assert step.rollout_log_probs is not None


def test_a_loop_of_tool_calls(make_worker, by_role, attempt) -> None:
    says = by_role(policy=["calculator: 12 * 3", "calculator: 36 / 6", "6"])
    trajectory = run(make_worker, says, "flow_with_tools", attempt())
    assert (trajectory.answer, trajectory.reward, len(trajectory.steps)) == ("6", 1.0, 3)
    assert [call.result for call in trajectory.tool_calls] == ["36", "6"]
    for before, step in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        known = before.prompt_ids + before.response_ids
        assert step.prompt_ids[: len(known)] == known
    assert [message["role"] for message in trajectory.steps[1].messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(("reply", "reward"), [("6", 1.0), ("7", 0.0)])
def test_the_gateway_helpers_sample_and_compute_the_reward(make_worker, by_role, attempt, reply, reward) -> None:
    trajectory = run(make_worker, by_role(policy=reply), "helpers_agent_flow", attempt())
    (step,) = trajectory.steps
    assert (trajectory.status, trajectory.metadata["found"], trajectory.reward) == (Status.COMPLETED, reward, reward)
    assert (step.temperature, step.metadata["channel"]) == (0.8, "val")


class Bare(AgentFlowBase):
    """A flow whose gateway helpers are called by the tests."""

    async def run(self, sampling_params: Any, **kwargs: Any) -> int:
        return 0


@pytest.fixture
def flow(make_worker, by_role, attempt) -> AgentFlowBase:
    from midstream.core.sampling import SamplingParams
    from midstream.record.recorder import Recorder

    worker = make_worker(by_role(policy="yes"), "flow_of_my_own")
    session = FlowSession(
        task=attempt().task,
        recorder=Recorder("mine", "p", seed=0),
        role_engines=worker._role_engines,
        tools=worker._toolbox.session(),
        sampling={"policy": SamplingParams()},
    )
    return Bare(session)


def ask(flow: AgentFlowBase, text: str) -> Step:
    reply, response_ids, prompt_ids = asyncio.run(
        flow.gateway_generate("mine", "p", [{"role": "user", "content": text}])
    )
    assert reply == "yes"
    return Step(prompt_ids=prompt_ids, response_ids=response_ids, trajectory_uid="mine", prompt_uid="p")


def test_identical_steps_can_be_submitted_together(flow: AgentFlowBase) -> None:
    one, two = ask(flow, "first?"), ask(flow, "second?")
    assert asyncio.run(flow.gateway_submit_steps([replace(one, reward=0.25), replace(two, reward=0.75)])) == 2
    assert [step.reward for step in flow.steps] == [0.25, 0.75]


def test_steps_not_sampled_by_the_flow_are_refused(flow: AgentFlowBase) -> None:
    step = ask(flow, "first?")
    for changed in (
        replace(step, response_ids=(*step.response_ids, 5)),
        replace(step, prompt_ids=step.prompt_ids[1:]),
    ):
        with pytest.raises(ConfigError, match="was not sampled through gateway_generate"):
            asyncio.run(flow.gateway_submit_steps([changed]))
    with pytest.raises(UserError, match="trajectory 'yours' is not this flow's"):
        asyncio.run(flow.gateway_submit_steps([replace(step, trajectory_uid="yours")]))
    with pytest.raises(UserError, match="'yours'"):
        asyncio.run(flow.gateway_generate("yours", "p", []))


def test_a_misspelt_setting_or_role_is_an_error_with_the_nearest_name(flow: AgentFlowBase) -> None:
    message = [{"role": "user", "content": "?"}]
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        asyncio.run(flow.gateway_generate("mine", "p", message, temprature=0.5))
    with pytest.raises(ConfigError, match="no engine for the role 'polcy'"):
        asyncio.run(flow.chat(message, role="polcy"))
    with pytest.raises(ConfigError, match="no reward function"):
        asyncio.run(flow.gateway_compute_reward("mine", message))


def test_the_built_in_loop_stops_when_no_tool_is_called(make_worker, by_role, attempt) -> None:
    says = by_role(policy=["calculator: 2 * 3", "The result is 6."])
    trajectory = run(make_worker, says, "multi_step_agent", attempt())
    assert (trajectory.turns, trajectory.answer, trajectory.reward) == (2, "The result is 6.", 1.0)
    endless = run(make_worker, by_role(policy="calculator: 1"), "multi_step_agent", attempt())
    assert endless.turns == MultiStepAgentFlow.max_turns
