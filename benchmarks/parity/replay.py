"""Level C: twenty optimizer steps on the same tokens and rewards, from the same weights.

TRL's side is `train()` of its trainers, handed stored tokens in place of sampling. Ours is what a step of training does
once it has trajectories: `make_batch` and `Learner.update`, with the log-probabilities that the policy of that moment
gives them, as an engine would have reported.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from benchmarks.parity.models import load_model
from benchmarks.parity.ours import groups_of, make_learner, weights_of
from benchmarks.parity.rows import Row
from benchmarks.parity.table import Level, Line, furthest, small
from benchmarks.parity.theirs import Stored, grpo_trainer, rloo_trainer
from torch import Tensor

from midstream.learn.algorithms import GRPO, RLOO, DrGRPO
from midstream.learn.algorithms.base import Algorithm, KLConfig
from midstream.learn.algorithms.penalty import penalise_rewards
from midstream.learn.data.batch import make_batch
from midstream.learn.losses.ratio import PPOClip
from midstream.learn.losses.sequence import GSPO
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.model.policy_outputs import compute_outputs, required_outputs

STEPS = 20
TOLERANCE = 1e-4
"""Of every weight in the end, absolute; and of what is logged at each step, relative to its largest value."""
GROUP = 4
TASKS = 2
END = 1
LR = 2e-4
ADAM = (0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One training run in TRL's words and in ours."""

    name: str
    theirs: dict[str, Any]
    ours: Algorithm
    epochs: int = 1
    """Optimizer steps on each batch."""
    tools: bool = False
    """Whether a tool speaks in the middle of completions."""
    flat: bool = True
    """Whether in some batches all completions of a prompt earn the same. Without a KL term ours leaves those out of the
    means it logs."""
    truncated: str = "keep"
    logged: tuple[str, ...] = ("loss", "grad_norm")
    """What both log, meaning the same."""
    rloo: bool = False


_NO_KL = KLConfig(coef=0.0, measure_every=0)

SCENARIOS = (
    Scenario(
        "GRPO, token mean, clip-higher, KL to the start, tools, 2 epochs",
        {
            "loss_type": "dapo",
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.04,
            "use_bias_correction_kl": False,
            "num_iterations": 2,
        },
        GRPO(eps=1e-4, loss=PPOClip(clip_low=0.2, clip_high=0.28), kl=KLConfig(coef=0.04, reference="start")),
        epochs=2,
        tools=True,
        logged=("loss", "grad_norm", "entropy", "kl", "clipped"),
    ),
    Scenario(
        "Dr. GRPO, truncated completions masked, 2 micro-batches a step",
        {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "max_completion_length": 16,
            "mask_truncated_completions": True,
            "gradient_accumulation_steps": 2,
        },
        DrGRPO(longest=16, loss=PPOClip(clip_low=0.2, clip_high=0.2), kl=_NO_KL),
        truncated="mask",
    ),
    Scenario(
        "GSPO, sequence mean, rewards scaled by the batch, 2 epochs",
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.05,
            "epsilon_high": 0.08,
            "scale_rewards": "batch",
            "num_iterations": 2,
        },
        GRPO(
            std="batch_rewards",
            eps=1e-4,
            aggregation="sequence_mean",
            loss=GSPO(clip_low=0.05, clip_high=0.08),
            kl=_NO_KL,
        ),
        epochs=2,
        flat=False,
        logged=("loss", "grad_norm", "clipped"),
    ),
    Scenario(
        "RLOO, KL in the reward",
        {"beta": 0.05},
        RLOO(
            aggregation="sequence_sum",
            loss=PPOClip(clip_low=0.2, clip_high=0.2),
            kl=KLConfig(coef=0.05, placement="reward", reference="start"),
        ),
        # Its ratio is that of the whole sequence: 1 on fresh samples, where only the gradient is the same.
        logged=("grad_norm", "kl"),
        rloo=True,
    ),
)

_THEIR_NAMES = {"clipped": "clip_ratio/region_mean"}


def level(folder: Path) -> Level:
    header = (
        "run",
        "largest difference in what is logged, of its largest value",
        "weights moved by",
        "weights off by",
    )
    return Level(f"C: {STEPS} optimizer steps (at most {TOLERANCE:g})", header, _lines(folder))


def _lines(folder: Path) -> Iterator[Line]:
    start = {name: value.detach() for name, value in load_model(folder).named_parameters()}
    for scenario in SCENARIOS:
        batches = [_batch(number, scenario) for number in range(STEPS // scenario.epochs)]
        their_log, theirs = _theirs(folder, scenario, batches)
        our_log, ours = _ours(folder, scenario, batches)
        assert len(our_log) == len(their_log) == STEPS and ours.keys() == theirs.keys()
        off = {name: _apart(name, our_log, their_log) for name in scenario.logged}
        moved = max(float((theirs[name] - start[name]).abs().max()) for name in start)
        weights = furthest(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        differences = ", ".join(f"{name} {small(value)}" for name, value in off.items())
        ok = furthest([weights, *off.values()]) <= TOLERANCE
        yield Line((scenario.name, differences, f"{moved:.4f}", small(weights)), ok)


def _apart(name: str, ours: Sequence[dict[str, float]], theirs: Sequence[dict[str, float]]) -> float:
    """The largest difference at a step, of the largest value."""
    their_values = [row[_THEIR_NAMES.get(name, name)] for row in theirs]
    largest = max(map(abs, their_values))
    return furthest(abs(row[name] - value) for row, value in zip(ours, their_values, strict=True)) / (largest or 1.0)


def _batch(number: int, scenario: Scenario) -> list[Row]:
    """Completions of one batch; in every fourth of a `flat` scenario, one group's rewards are equal."""
    draw = random.Random(number)
    rows: list[Row] = []
    for task in range(TASKS):
        prompt = tuple(draw.randrange(4, 512) for _ in range(5 + 3 * task))
        for member in range(GROUP):
            length = draw.randrange(7, 16)
            cut = scenario.truncated == "mask" and (number + task + member) % 3 == 0
            completion = tuple(draw.randrange(4, 512) for _ in range(length)) + (() if cut else (END,))
            tool = (2 + member % 2, 3 + member % 2, 4) if scenario.tools else ()
            mask = tuple(int(place not in tool) for place in range(len(completion)))
            reward = 0.5 if scenario.flat and number % 4 == 0 and task == 0 else round(draw.random(), 2)
            rows.append(Row(prompt, completion, mask, reward, task, truncated=cut))
    return rows


def _theirs(
    folder: Path, scenario: Scenario, batches: Sequence[Sequence[Row]]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What TRL logged at each step, and its weights in the end."""
    stored = Stored(batches)
    make = rloo_trainer if scenario.rloo else grpo_trainer
    trainer = make(
        folder,
        TASKS * GROUP // scenario.theirs.get("gradient_accumulation_steps", 1),
        rewards=[stored.reward],
        stored=stored,
        num_generations=GROUP,
        max_steps=STEPS,
        learning_rate=LR,
        adam_beta1=ADAM[0],
        adam_beta2=ADAM[1],
        **scenario.theirs,
    )
    trainer.train()
    log = [row for row in trainer.state.log_history if "grad_norm" in row]
    return log, {name: p.detach() for name, p in trainer.model.named_parameters()}


def _ours(
    folder: Path, scenario: Scenario, batches: Sequence[Sequence[Row]]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """What our learner logged at each step, and its weights in the end."""
    learner, algorithm = make_learner(folder, lr=LR, betas=ADAM, max_grad_norm=1.0), scenario.ours
    kl, start = algorithm.kl, learner.weights.snapshot()

    def policy(sequences: Sequence[TokenSequence]) -> Tensor:
        with torch.no_grad():
            return score(learner.decoder, sequences).log_probs

    def reference(sequences: Sequence[TokenSequence]) -> Tensor:
        with learner.weights.swapped(start):
            return policy(sequences)

    log: list[dict[str, float]] = []
    for rows in batches:
        found = iter(
            learner.reference_log_probs(policy, [TokenSequence(row.prompt_ids, row.completion_ids) for row in rows])
        )
        sampled = [replace(row, old_log_probs=tuple(islice(found, len(row.mask)))) for row in rows]
        groups, drift = groups_of(sampled), None
        if kl.placement == "reward":
            groups, drift = penalise_rewards(
                groups, compute_outputs(learner, groups, required_outputs(algorithm), reference), kl.coef
            )
        in_loss = kl.coef > 0 and kl.placement == "loss"
        batch = make_batch(groups, algorithm, failed="mask", truncated=scenario.truncated, keep_zero=in_loss)
        for _ in range(scenario.epochs):
            sums = learner.update(batch, algorithm, reference if in_loss else None)
            log.append(_means(sums) | ({} if drift is None else {"kl": drift}))
    return log, weights_of(learner)


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Sums over weighted tokens as means over them, as a step of training logs them."""
    means = {name: sums[name] / sums["weight"] for name in ("entropy", "kl", "clipped") if name in sums}
    return {"loss": sums["loss"], "grad_norm": sums["grad_norm"], **means}
