"""Agents built with real packages: each runs against a gateway before SmolLM2, its tokens are compared with what the
engine sampled, and it is trained from the store for three steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from midstream.api import load_config, train
from midstream.core.types import Step, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import load_tokenizer
from midstream.engines.models import resolve
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.learn.model.log_probs import TokenSequence, score

MODEL = "smollm2-135m"
QUESTIONS = ("What is 12 + 30?", "What is 7 * 8?", "What is 90 / 6?")
ATTEMPTS = 2


@dataclass(frozen=True)
class AgentEndpoint:
    """Address of an agent's model: `url` and `token` for OpenAI's clients; Anthropic's use `root`."""

    url: str
    token: str
    model: str = MODEL

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


Agent = Callable[[AgentEndpoint, str], object]
"""Answers a question."""


class RecordingEngine(TorchEngine):
    """The torch engine; records everything it samples."""

    def __init__(self, decoder: Decoder, tokenizer: Any) -> None:
        super().__init__(decoder, tokenizer)
        self.seen: dict[tuple[int, ...], list[Completion]] = {}

    async def generate(self, request: Request) -> Completion:
        completion = await super().generate(request)
        self.seen.setdefault(request.prompt_ids, []).append(completion)
        return completion


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return load_decoder(resolve(MODEL), torch.float32)


@pytest.fixture
def trained(serve: Any, decoder: Decoder, tmp_path: Path) -> Iterator[Callable[[Agent], list[Trajectory]]]:
    """Run an agent twice on each of three questions, check every token, train on them; return the trajectories."""
    engine = RecordingEngine(decoder, load_tokenizer(resolve(MODEL)))
    # Frameworks send different temperatures; training needs a single one.
    served = serve(engine, model=MODEL, sampling={"temperature": 1.0}, limits={"max_response_tokens": 40})

    def attempt(agent: Agent, question: str, reward: float) -> str:
        opened = served.open(prompt_uid=f"q{QUESTIONS.index(question)}", group_size=ATTEMPTS, task={"prompt": question})
        answer = str(agent(AgentEndpoint(opened["base_url"], opened["token"]), question))
        done = {"answer": answer, "reward": reward}
        httpx.post(
            f"{opened['base_url']}/complete_trajectory",
            json=done,
            headers={"Authorization": f"Bearer {opened['owner_token']}"},
        ).raise_for_status()
        return opened["trajectory_uid"]

    def run(agent: Agent) -> list[Trajectory]:
        # Rewards differ within each group, whatever the model replies, so that every group has a gradient.
        tries = [(question, float(number)) for question in QUESTIONS for number in range(ATTEMPTS)]
        with ThreadPoolExecutor(len(tries)) as pool:
            uids = list(pool.map(lambda one: attempt(agent, *one), tries))
        trajectories = [served.store.trajectories.get(uid) for uid in uids]
        for trajectory in trajectories:
            assert len(trajectory.steps) >= 2, "an agent takes two turns or more"
            check_tree(trajectory.steps, engine)
        check_log_probs([step for t in trajectories for step in t.steps], decoder)
        check_training(served.store.where, tmp_path / "run")
        assert served.store.groups.counts()["consumed"] == len(QUESTIONS)
        return trajectories

    yield run


def check_tree(steps: tuple[Step, ...], engine: RecordingEngine) -> None:
    """Assert that tokens are the engine's, text is decoded from them, and each step extends its parent."""
    for step in steps:
        sampled = [(one.ids, one.log_probs) for one in engine.seen[step.prompt_ids]]
        assert (step.response_ids, step.rollout_log_probs) in sampled
        assert engine.tokenizer.text_of(step.response_ids) == step.text
        if step.parent is not None:
            before = steps[step.parent]
            known = before.prompt_ids + before.response_ids
            assert step.prompt_ids[: len(known)] == known


def check_log_probs(steps: list[Step], decoder: Decoder) -> None:
    """Assert that the learner computes the engine's log-probabilities from the recorded tokens alone."""
    sequences = [TokenSequence.of(step) for step in steps]
    reported = torch.tensor([value for step in steps for value in step.rollout_log_probs or ()])
    with torch.no_grad():
        off = (score(decoder, sequences).log_probs - reported).abs().max().item()
    print(f"{len(steps)} calls, {len(reported)} sampled tokens, log-probabilities within {off:.1e}")
    assert off <= 1e-3


def check_training(store: str, run: Path) -> None:
    """Assert that `midstream train configs/from_store.yaml --from-store` trains on everything in three steps."""
    overrides = [
        f"rollout.source.store={store}",
        "rollout.source.wait_s=1",
        "rollout.tasks_per_step=1",
        "policy.dtype=float32",
        "trainer.max_steps=3",
        f"trainer.run_dir={run}",
    ]
    result = train(load_config("configs/from_store.yaml", overrides), callbacks=())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (result.status, [row["step"] for row in rows]) == ("finished", [1, 2, 3])
    assert all(row["grad_norm"] > 0 for row in rows)
