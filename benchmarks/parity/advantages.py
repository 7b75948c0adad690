"""Level A: advantages of scored completions.

TRL's side is its trainers' own `_generate_and_score_completions`, which asks reward functions that return the rewards
of a case and gives back advantages; a `rollout_func` (GRPO) or a `_generate` put in its place (RLOO) hands it stored
tokens. Ours is the whole way from components to a learning batch: `RewardFunction`, then `make_batch`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.parity.models import log_probs_of
from benchmarks.parity.ours import groups_of, stored_reference
from benchmarks.parity.rows import Row
from benchmarks.parity.table import Level, Line, furthest, small
from benchmarks.parity.theirs import Stored, grpo_trainer, rloo_trainer

from midstream.core.errors import TrainingError
from midstream.core.types import Task, Trajectory
from midstream.learn.algorithms import GDPO, GRPO, RLOO, DrGRPO
from midstream.learn.algorithms.base import Algorithm
from midstream.learn.algorithms.outcome import PolicyOutputs
from midstream.learn.algorithms.penalty import penalise_rewards
from midstream.learn.data.batch import make_batch
from midstream.learn.model.log_probs import TokenSequence
from midstream.rewards.components import component
from midstream.rewards.compose import RewardConfig, RewardFunction

TOLERANCE = 1e-6
EPS = 1e-4
"""What TRL adds to a standard deviation."""
BETA = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """Rewards of groups of `size` completions, a tuple for each of one or two components; None did not apply."""

    name: str
    size: int
    columns: tuple[tuple[float | None, ...], ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def whole(self) -> bool:
        """Whether every component applied wherever another did."""
        return all(len({value is None for value in values}) == 1 for values in zip(*self.columns, strict=True))


_draw = random.Random(5)
_GRADED = tuple(round(_draw.uniform(-1, 2), 3) for _ in range(12))
_OTHER = tuple(round(_draw.gauss(0, 3), 3) for _ in range(12))

CASES = (
    Case("one winner of four", 4, ((1.0, 0.0, 0.0, 0.0),)),
    Case("groups of two", 2, ((1.0, 0.0, 0.25, 0.75, -3.0, 2.0),)),
    Case("graded, three groups", 4, (_GRADED,)),
    Case("a constant group beside a mixed one", 4, ((0.5, 0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 1.0),)),
    Case("a completion nobody could score", 4, ((1.0, None, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0),)),
    Case("a group with one scored completion", 4, ((1.0, 0.0, 0.0, 1.0, None, 2.0, None, None),)),
    Case("two components", 4, (_GRADED, _OTHER), (0.7, -0.3)),
    Case("two components, nobody could score one completion", 2, ((1, None, 0, 2), (3, None, 5, 4)), (1.0, 0.5)),
    Case("two components, one did not apply", 4, ((1, 0, None, 0), (0.5, None, 2.0, 1.0)), (0.7, 0.3)),
)


def level(folder: Path) -> Level:
    return Level(
        f"A: advantages (largest difference at most {TOLERANCE:g})",
        ("case", "theirs", "ours", "advantages", "largest", "difference"),
        _lines(folder),
    )


def _lines(folder: Path) -> Iterator[Line]:
    grpo: list[tuple[str, Algorithm]] = [
        ("group", GRPO(std="group", ddof=1, eps=EPS)),
        ("batch", GRPO(std="batch_rewards", ddof=1, eps=EPS)),
        ("none", DrGRPO()),
    ]
    for case in CASES:
        for scale, algorithm in grpo:
            ours = "dr_grpo" if scale == "none" else f"grpo, std {getattr(algorithm, 'std', '')}"
            theirs = _grpo(folder, case, scale_rewards=scale)
            yield _compared(case, f"GRPO, scale_rewards {scale}", ours, theirs, _ours(case, algorithm))
        if len(case.columns) > 1 and case.whole:
            theirs = _grpo(folder, case, multi_objective_aggregation="normalize_then_sum")
            weights = dict(zip(_NAMES, case.weights, strict=False))
            found = _ours(case, GDPO(weights=weights, eps=EPS))
            yield _compared(case, "GRPO, normalize_then_sum", "gdpo", theirs, found)
        yield _compared(case, "RLOO", "rloo", _rloo(folder, case, 0.0)[0], _ours(case, RLOO()))
    case = CASES[2]
    theirs, rows = _rloo(folder, case, BETA)
    yield _compared(case, f"RLOO, beta {BETA}", "rloo, kl in the reward", theirs, _ours(case, RLOO(), rows, BETA))
    yield _refusal()


def _compared(case: Case, their_name: str, our_name: str, theirs: Sequence[float], ours: Sequence[float]) -> Line:
    off = furthest(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    largest = max(map(abs, theirs))
    cells = (case.name, their_name, our_name, str(len(theirs)), f"{largest:.3f}", small(off))
    return Line(cells, off <= TOLERANCE)


def _refusal() -> Line:
    """A reward that is not a number is left out by TRL as None is; here it ends the step, by name."""
    row = replace(_rows(CASES[0])[0], reward=math.nan)
    try:
        make_batch(groups_of([row]), GRPO(), failed="mask")
    except TrainingError as error:
        return Line(("a reward that is NaN", "left out", "refused, on purpose", "1", "", ""), "reward" in str(error))
    return Line(("a reward that is NaN", "left out", "taken", "1", "", ""), False)


def _rows(case: Case) -> list[Row]:
    """A completion for each reward of `case`, of three to six tokens."""
    draw, rows = random.Random(3), []
    for number in range(len(case.columns[0])):
        length = 3 + number % 4
        prompt, completion = (tuple(draw.randrange(4, 512) for _ in range(n)) for n in (3, length))
        rows.append(Row(prompt, completion, (1,) * length, 0.0, number // case.size, (-1.0,) * length))
    return rows


def _returns(column: Sequence[float | None]) -> Callable[..., Sequence[float | None]]:
    return lambda completions, **columns: column


def _grpo(folder: Path, case: Case, **settings: Any) -> list[float]:
    """TRL's advantages."""
    rows = _rows(case)
    trainer = grpo_trainer(
        folder,
        len(rows),
        rewards=[_returns(column) for column in case.columns],
        stored=Stored([rows]),
        num_generations=case.size,
        reward_weights=list(case.weights),
        **settings,
    )
    return trainer._generate_and_score_completions([{"prompt": "w0"} for _ in rows])["advantages"].tolist()


def _rloo(folder: Path, case: Case, beta: float) -> tuple[list[float], list[Row]]:
    """TRL's advantages, and the completions with their log-probabilities under its policy and its reference, where it
    has one."""
    rows = _rows(case)
    trainer = rloo_trainer(
        folder,
        len(rows),
        rewards=[_returns(column) for column in case.columns],
        stored=Stored([rows]),
        num_generations=case.size,
        reward_weights=list(case.weights),
        beta=beta,
    )
    if beta:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.ref_model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)

        def scored(model: Any, row: Row) -> tuple[float, ...]:
            return tuple(log_probs_of(model, row.prompt_ids, row.completion_ids, 1.0).tolist())

        rows = [
            replace(row, old_log_probs=scored(trainer.model, row), reference_log_probs=scored(trainer.ref_model, row))
            for row in rows
        ]
    return trainer._generate_and_score_completions([{"prompt": "w0"} for _ in rows])["advantages"].tolist(), rows


_NAMES: tuple[str, ...] = ("parity_first", "parity_second")


@component(_NAMES[0])
def _first(task: Task) -> float | None:
    return task.metadata[_NAMES[0]]


@component(_NAMES[1])
def _second(task: Task) -> float | None:
    return task.metadata[_NAMES[1]]


def _ours(case: Case, algorithm: Algorithm, rows: Sequence[Row] = (), beta: float = 0.0) -> list[float]:
    """Our advantages, of what is scored and trained on; 0 for the rest. With `beta`, the KL of `rows` is taken from
    what they earned."""
    rows = rows or _rows(case)
    names = _NAMES[: len(case.columns)]
    weights = dict(zip(names, case.weights, strict=True))
    reward = RewardFunction(RewardConfig(components=weights, success=names[0]))
    given = iter(zip(*case.columns, strict=True))

    async def scored(trajectory: Trajectory) -> Trajectory:
        metadata = dict(zip(names, next(given), strict=True))
        return await reward.score(replace(trajectory, task=replace(trajectory.task, metadata=metadata)))

    async def all_scored() -> list[list[Trajectory]]:
        return [[await scored(trajectory) for trajectory in group] for group in groups_of(rows)]

    groups = asyncio.run(all_scored())
    if beta:
        reference = stored_reference(rows)
        outputs = {
            (trajectory.uid, step.step_index): PolicyOutputs(
                reference=reference([TokenSequence(step.prompt_ids, step.response_ids)]).tolist()
            )
            for group in groups
            for trajectory in group
            for step in trajectory.steps
        }
        groups, _ = penalise_rewards(groups, outputs, beta)
    batch = make_batch(groups, algorithm, failed="mask", keep_zero=True)
    found = {turn.sequence.response_ids: turn.advantages[0] for turn in batch.turns}
    return [found.get(row.completion_ids, 0.0) for row in rows]
