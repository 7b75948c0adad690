"""Level B: loss and gradient of a frozen batch.

TRL's side is `GRPOTrainer._compute_loss` of a trainer constructed for each setting. Ours is `Learner.update`: batch
weights from `make_batch`, then passes of a few dozen tokens, so that the batch is cut where TRL's is whole. The same
settings are spelled twice, in `Setting`: as TRL's arguments and as a loss and an aggregation of ours.

A sequence with a tool's tokens inside is several of our turns. Its tokens are averaged as TRL does by an aggregation of
ours: over all of the batch (`token_mean`); over each sequence, by giving each a prompt of its own (`prompt_mean`); by a
constant, TRL's divided by the turns a sequence has (`constant_length`). Where the ratio is one for a whole sequence,
TRL's has all its turns in it and ours one turn's: TRL is then given each turn as a row of its own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.parity.models import ARCHITECTURES, load_model, log_probs_of
from benchmarks.parity.ours import gradient_of, groups_of, make_learner, stored_reference
from benchmarks.parity.rows import Row
from benchmarks.parity.table import Level, Line, furthest, small
from benchmarks.parity.theirs import grpo_trainer, inputs_of
from torch import Tensor

from midstream.learn.algorithms import Reinforce
from midstream.learn.algorithms.base import Aggregation, KLConfig
from midstream.learn.data.batch import make_batch
from midstream.learn.losses import LossConfig
from midstream.learn.losses.ratio import CISPO, SAPO, PPOClip
from midstream.learn.losses.sequence import GSPO

LOSS_TOLERANCE = 1e-6
"""Of the loss, relative."""
GRADIENT_TOLERANCE = 1e-5
"""Of every weight's gradient, absolute."""
LONGEST = 24
"""Tokens of the longest completion, which `dr_grpo` divides by."""
TURNS = 3
"""Turns of a sequence with holes."""
PASS = 48
"""Distinct tokens of one of our passes."""
NOISE = 0.3
"""Standard deviation of what old and reference log-probabilities are off by."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One loss in TRL's words and in ours."""

    loss_type: str
    loss: LossConfig
    aggregation: Aggregation
    theirs: dict[str, Any]
    sequence: bool = False
    """Whether the ratio is one for a whole sequence."""

    @property
    def name(self) -> str:
        return f"{self.loss_type}, {'sequence' if self.sequence else 'token'}"


_AVERAGED: dict[str, Aggregation] = {
    "grpo": "sequence_mean",
    "bnpo": "token_mean",
    "dr_grpo": "constant_length",
    "dapo": "token_mean",
}


def _settings() -> Iterator[Setting]:
    for loss_type, aggregation in _AVERAGED.items():
        for low, high, delta in ((0.2, 0.2, None), (0.2, 0.28, None), (0.1, 0.3, 1.4)):
            theirs = {"epsilon": low, "epsilon_high": high, "delta": delta}
            yield Setting(loss_type, PPOClip(clip_low=low, clip_high=high, two_sided=delta), aggregation, theirs)
    for upper in (1.2, 5.0):
        yield Setting("cispo", CISPO(lower=0.0, upper=upper), "token_mean", {"epsilon_high": upper})
    for positive, negative in ((1.0, 1.05), (0.7, 2.0)):
        temperatures = {"sapo_temperature_pos": positive, "sapo_temperature_neg": negative}
        yield Setting("sapo", SAPO(tau_positive=positive, tau_negative=negative), "sequence_mean", temperatures)
    for loss_type, aggregation in _AVERAGED.items():
        for low, high in ((3e-4, 4e-4), (0.03, 0.06)):
            theirs = {"epsilon": low, "epsilon_high": high, "importance_sampling_level": "sequence"}
            yield Setting(loss_type, GSPO(clip_low=low, clip_high=high), aggregation, theirs, sequence=True)


SETTINGS = tuple(_settings())
MASKS = ("none", "holes", "all but 1")
BATCHES = (1, 4)
BETAS = (0.0, 0.04)


def level(folders: dict[str, Path]) -> Level:
    return Level(
        f"B: loss (relative, at most {LOSS_TOLERANCE:g}) and gradient (every weight, at most {GRADIENT_TOLERANCE:g})",
        ("model", "loss type, ratio", "tool mask", "cases", "loss off by", "gradient off by", "largest gradient"),
        _lines(folders),
    )


def _lines(folders: dict[str, Path]) -> Iterator[Line]:
    for architecture in ARCHITECTURES:
        # The whole grid on one model; on the others, at another temperature, a case of each loss.
        whole = architecture == ARCHITECTURES[-1]
        bench = _Bench(folders[architecture], 1.0 if whole else 0.7)
        names = list(dict.fromkeys(setting.name for setting in SETTINGS))
        for name, mask in product(names, MASKS if whole else ("holes",)):
            settings = [setting for setting in SETTINGS if setting.name == name]
            found = [
                bench.compare(setting, mask, size, beta)
                for setting, size, beta in product(settings if whole else settings[-1:], BATCHES, BETAS)
                if whole or (size, beta) == (BATCHES[-1], BETAS[-1])
            ]
            loss, gradient, largest = (furthest(values) for values in zip(*found, strict=True))
            cells = (architecture, name, mask, str(len(found)), small(loss), small(gradient), f"{largest:.2f}")
            yield Line(cells, loss <= LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE)


class _Bench:
    """One model in both systems, and the batches they are compared on."""

    def __init__(self, folder: Path, temperature: float) -> None:
        self.folder, self.temperature = folder, temperature
        self.learner = make_learner(folder, PASS, lr=1e-9, max_grad_norm=1e9)
        self.start = self.learner.weights.snapshot()
        model = load_model(folder)
        self.rows = {mask: _frozen(model, mask, temperature) for mask in MASKS}

    def compare(self, setting: Setting, mask: str, size: int, beta: float) -> tuple[float, float, float]:
        """How far apart the losses are, relative, and the gradients; and the largest gradient."""
        rows = self.rows[mask][:size]
        their_rows = [turn for row in rows for turn in _turns(row)] if setting.sequence else rows
        their_loss, theirs = self._theirs(setting, their_rows, mask != "none" and not setting.sequence, beta)
        our_loss, ours = self._ours(setting, rows, mask, beta)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        off = furthest(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        return abs(our_loss - their_loss) / abs(their_loss), off, largest

    def _theirs(
        self, setting: Setting, rows: Sequence[Row], masked: bool, beta: float
    ) -> tuple[float, dict[str, Tensor]]:
        trainer = grpo_trainer(
            self.folder,
            2,
            loss_type=setting.loss_type,
            beta=beta,
            use_bias_correction_kl=False,  # our KL term is not weighed by the ratio
            temperature=self.temperature,
            max_completion_length=LONGEST,
            **setting.theirs,
        )
        inputs = inputs_of(rows, with_mask=masked, with_reference=beta > 0)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}

    def _ours(self, setting: Setting, rows: Sequence[Row], mask: str, beta: float) -> tuple[float, dict[str, Tensor]]:
        aggregation, longest = setting.aggregation, LONGEST
        if mask == "holes" and not setting.sequence:
            rows = [replace(row, group=number) for number, row in enumerate(rows)]
            aggregation = "prompt_mean" if aggregation == "sequence_mean" else aggregation
            longest = LONGEST // TURNS
        algorithm = Reinforce(
            baseline="none",  # a completion's reward is its advantage, as it is given
            loss=setting.loss,
            aggregation=aggregation,
            longest=longest,
            kl=KLConfig(coef=beta, estimator="k3", placement="loss"),
        )
        batch = make_batch(groups_of(rows, self.temperature), algorithm, failed="mask", keep_zero=True)
        found = self.learner.update(batch, algorithm, stored_reference(rows) if beta else None)
        gradient = gradient_of(self.learner)
        self.learner.weights.restore(self.start)
        return found["loss"], gradient


def _frozen(model: Any, mask: str, temperature: float) -> list[Row]:
    """Four completions of two prompts, of unequal lengths, with frozen advantages and log-probabilities."""
    draw = random.Random(11)
    prompts = [tuple(draw.randrange(4, 512) for _ in range(length)) for length in (9, 6)]
    rows: list[Row] = []
    for number, (length, advantage) in enumerate(zip((LONGEST, 17, 13, 21), (1.3, -0.7, 1.9, 0.8), strict=True)):
        prompt = prompts[number // 2]
        completion = tuple(draw.randrange(4, 512) for _ in range(length))
        now = log_probs_of(model, prompt, completion, temperature).tolist()
        old, reference = (tuple(value + draw.gauss(0, NOISE) for value in now) for _ in range(2))
        rows.append(Row(prompt, completion, _mask(mask, length), advantage, number // 2, old, reference))
    return rows


def _mask(kind: str, length: int) -> tuple[int, ...]:
    if kind == "none":
        return (1,) * length
    if kind == "all but 1":
        return tuple(int(place == length // 2) for place in range(length))
    # A tool answers twice: three turns, the last of which goes on to the end.
    tool = {3, 4, 5, length - 4, length - 3}
    return tuple(int(place not in tool) for place in range(length))


def _turns(row: Row) -> list[Row]:
    """Each turn of a sequence as a row of its own: everything before it is its prompt."""
    return [
        Row(
            row.prompt_ids + row.completion_ids[:begin],
            row.completion_ids[begin:end],
            (1,) * (end - begin),
            row.reward,
            row.group,
            row.old_log_probs[begin:end],
            row.reference_log_probs[begin:end],
        )
        for begin, end in row.runs()
    ]
