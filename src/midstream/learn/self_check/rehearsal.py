"""The run that is checked when no config is given: a flow with every kind of token, on a model of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from midstream.agents.base import AgentFlowBase
from midstream.core.config import apply_overrides, parse_config
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.engines import tiny
from midstream.engines.models import no_progress_bars
from midstream.learn.config import TrainConfig


class Rehearsal(AgentFlowBase):
    """Every kind of token there is: two plans with a tool's result after each, a critic whose words stay in the
    conversation, a judge in one of its own, and an answer."""

    roles = ("planner", "critic", "judge", "generator")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        messages: list[Message] = [{"role": "user", "content": self.task.question}]
        for _ in range(2):
            plan = await self.chat(messages, role="planner")
            call = await self.call_tool("echo", {"text": plan.text})
            messages += [{"role": "assistant", "content": plan.text}, {"role": "user", "content": call.result}]
        critique = await self.chat(messages, role="critic")
        judged = await self.chat([{"role": "user", "content": f"Is this right? {critique.text}"}], role="judge")
        messages += [{"role": "assistant", "content": critique.text}, {"role": "user", "content": judged.text}]
        self.answer = (await self.chat(messages, role="generator")).text
        return len(self.steps)


def rehearsal(folder: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A run of `Rehearsal` with a model `tiny` in `folder`: in float32, where rounding hides least, and sharpened, as
    little shows where every token is about as likely as any other."""
    with no_progress_bars():
        tiny.build(folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] *= 8 if name == "model.norm.weight" else 2
    embed, (end_of_text, _, end) = weights["model.embed_tokens.weight"], range(len(tiny.SPECIAL_TOKENS))
    embed[end] = 6 * embed[end_of_text]  # 0 as it is made, and next to no response would end
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {
        "name": "self-check",
        "policy": {"model": str(folder), "dtype": "float32", "lora": {"rank": 4, "alpha": 8}},
        "tasks": {"sources": [{"type": "calculate"}]},
        "flow": {
            "name": f"{__name__}:{Rehearsal.__name__}",
            "tools": ["echo"],
            "roles": {
                "planner": {"sampling": {"temperature": 0.5, "max_tokens": 16}},
                "critic": {"train": False},
            },
        },
        "reward": {"components": {"length": 1.0}},
        "rollout": {"group_size": 4, "sampling": {"temperature": 0.9, "max_tokens": 8}},
        "trainer": {"deterministic": True},
    }
    config = apply_overrides(settings, overrides)
    if config["policy"].get("tuning", "lora") == "lora":
        config["flow"]["roles"]["judge"] = {"engine": "frozen"}
    else:
        config.setdefault("algorithm", {"name": "flow_grpo", "kl": {"reference": "start"}})
    return parse_config(TrainConfig, config, "the config of the self-check")
