"""A black-box flow, and the check that recorded tokens extend each other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from midstream.agents.black_box import BlackBoxAgentFlowBase
from midstream.agents.registry import register
from midstream.core.types import Trajectory


def assert_exact(trajectory: Trajectory) -> None:
    """Check that prompts extend the tokens of their parents, and that every response token has a log-probability."""
    for step in trajectory.steps:
        if step.parent is not None:
            before = trajectory.steps[step.parent]
            known = before.prompt_ids + before.response_ids
            assert step.prompt_ids[: len(known)] == known
        assert len(step.response_ids) == len(step.rollout_log_probs or ()) > 0 and step.trainable


@register("two_questions_for_black_box")
class TwoQuestions(BlackBoxAgentFlowBase):
    """Makes two concurrent calls with the Anthropic API."""

    async def _run_agent(self, base_url: str, kwargs: Mapping[str, Any]) -> str:
        from anthropic import AsyncAnthropic

        async with AsyncAnthropic(base_url=self.address.root_url, api_key=self.address.token) as client:
            reply = await asyncio.gather(
                *[
                    client.messages.create(
                        model=self.address.model, max_tokens=6, messages=[{"role": "user", "content": text}]
                    )
                    for text in (kwargs["raw_prompt"], "Are you sure?")
                ]
            )
        return str(len(reply))
