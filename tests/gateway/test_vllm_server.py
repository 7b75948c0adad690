"""A black-box agent with vLLM's server and with the torch engine records the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.engines.conftest import start_real_vllm  # noqa: F401  a fixture
from tests.gateway.served import Served

from midstream.core.types import Step
from midstream.engines.chat import ChatTokenizer
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.engines.vllm import VLLMEngine
from midstream.learn.model.log_probs import TokenSequence, score

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


def act(base_url: str, token: str) -> None:
    """A greedy agent that calls a tool, gets the result, and answers."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 17 + 25? Use the tool."}]
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 48, "tools": [ADD]}
    with httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {token}"}, timeout=300) as client:
        for choice in ("required", "auto"):
            body = {**settings, "messages": messages, "tool_choice": choice}
            response = client.post("/chat/completions", json=body)
            assert response.status_code == 200, response.text
            messages.append(response.json()["choices"][0]["message"])
            for call in messages[-1].get("tool_calls") or ():
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": "42"})


def captured(engine: Any, tokenizer: ChatTokenizer, store: Path) -> tuple[Step, ...]:
    served = Served(engine, tokenizer, store)
    try:
        opened = served.post("/init_trajectory").json()
        act(opened["base_url"], opened["token"])
        return served.steps(opened["trajectory_uid"])
    finally:
        served.stop()


def test_an_agent_records_the_same_tokens_with_vllm_and_with_the_torch_engine(
    start_real_vllm,  # noqa: F811
    tmp_path: Path,
) -> None:

    real = start_real_vllm("processed_logprobs")
    decoder = load_decoder(real.folder, torch.float32)
    own = captured(TorchEngine(decoder, real.tokenizer), real.tokenizer, tmp_path / "torch.sqlite")

    class Late:
        """vLLM's engine, connected in the event loop that serves it."""

        name, policy_version, context_length = "vllm", 0, 512
        engine: VLLMEngine | None = None

        async def generate(self, request: Any) -> Any:
            self.engine = self.engine or await VLLMEngine.connect(real.url, real.tokenizer)
            return await self.engine.generate(request)

        def join(self, session: str) -> None: ...

        def leave(self, session: str) -> None: ...

    theirs = captured(Late(), real.tokenizer, tmp_path / "vllm.sqlite")
    assert [(step.prompt_ids, step.response_ids) for step in theirs] == [
        (step.prompt_ids, step.response_ids) for step in own
    ]
    assert [step.parent for step in theirs] == [None, 0] and not any(step.branch_reason for step in theirs)
    sequences = [TokenSequence(step.prompt_ids, step.response_ids, 1.0) for step in theirs]
    derived = score(decoder, sequences).log_probs.detach()
    reported = torch.tensor([value for step in theirs for value in step.rollout_log_probs or ()])
    assert float((derived - reported).abs().max()) < 1e-3
