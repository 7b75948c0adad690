"""Midstream's side: the same rows as trajectories, and the gradient of an update under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from benchmarks.parity.rows import Row
from torch import Tensor

from midstream.core.types import FinishReason, Step, Task, Trajectory
from midstream.engines.torch.decoder import load_decoder
from midstream.learn.config import OptimizerConfig
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.model.weights import Weights

TASK = Task(id="parity", prompt="")


def trajectory_of(row: Row, number: int, temperature: float = 1.0) -> Trajectory:
    """A step for each run of sampled tokens: the run is the response, everything before it the prompt. So a tool's
    tokens are context and nothing else."""
    steps = [
        Step(
            prompt_ids=row.prompt_ids + row.completion_ids[:begin],
            response_ids=row.completion_ids[begin:end],
            rollout_log_probs=row.old_log_probs[begin:end],
            step_index=index,
            trainable=True,
            temperature=temperature,
            finish_reason=FinishReason.LENGTH if row.truncated else FinishReason.STOP,
        )
        for index, (begin, end) in enumerate(row.runs())
    ]
    return Trajectory(uid=str(number), prompt_uid=str(row.group), task=TASK, steps=tuple(steps), reward=row.reward)


def groups_of(rows: Sequence[Row], temperature: float = 1.0) -> list[list[Trajectory]]:
    """Trajectories of `rows`, in groups."""
    groups: dict[int, list[Trajectory]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.group, []).append(trajectory_of(row, number, temperature))
    return list(groups.values())


def stored_reference(rows: Sequence[Row]) -> Callable[[Sequence[TokenSequence]], Tensor]:
    """A reference policy that gives the log-probabilities stored in `rows`."""
    known = {
        (row.prompt_ids + row.completion_ids[:begin], row.completion_ids[begin:end]): row.reference_log_probs[begin:end]
        for row in rows
        for begin, end in row.runs()
    }
    return lambda sequences: torch.tensor([v for s in sequences for v in known[s.prompt_ids, s.response_ids]])


def make_learner(folder: Path, tokens_per_pass: int = 4096, **optimizer: object) -> Learner:
    """A learner of every weight of the model in `folder`, in fp32."""
    decoder = load_decoder(folder, torch.float32)
    return Learner(decoder, Weights(decoder, "full"), OptimizerConfig.model_validate(optimizer), tokens_per_pass)


def gradient_of(learner: Learner) -> dict[str, Tensor]:
    """The gradient of the last update."""
    return learner.decoder.to_hf(learner.weights.gradients())


def weights_of(learner: Learner) -> dict[str, Tensor]:
    return learner.decoder.to_hf(learner.weights.snapshot())
