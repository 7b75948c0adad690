"""Level D: both systems sample and learn by themselves, five seeds each, from the same weights.

The task: say the word you were asked to say, and stop. A reply of at most two tokens earns 1 for the word and the end,
1/2 for the word alone. A model of random weights gets the word in one reply of 12.

Seeds decide the order of tasks and what is sampled, and no two runs share a draw. Within seed noise means, for the
steps a run takes to a reward of 0.9 and for its mean reward over all steps: an exact permutation test of the difference
of means over seeds (Fisher 1935; Pitman 1937), two-sided, is not significant at 0.01. With five seeds a side it is when
one system is ahead in every pair of seeds. And the mean steps of the two differ by less than half. The rule was set
before the first run; task and learning rate were made to fit into a minute with Midstream alone, on seeds 100 and 101.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.parity.models import SPECIAL, words
from benchmarks.parity.table import Level, Line
from benchmarks.parity.theirs import grpo_trainer

import midstream as ms
from midstream.learn.run import trainer

VOCAB, SPREAD = 12, 0.06
ASKED = 8
TASKS, GROUP, STEPS = 8, 8, 150
LR, ADAM, CLIP = 1e-4, (0.9, 0.99), 0.2
SEEDS = range(5)
GOAL, OVER = 0.9, 3
"""Solved: a mean reward of `GOAL` over `OVER` steps."""
SIGNIFICANT = 0.01
MOST_APART = 1.5
END = 1


def earned(reply: Sequence[int], word: int) -> float:
    """What a reply is worth."""
    correct = len(reply) > 0 and reply[0] == word
    return 0.0 if not correct else 1.0 if list(reply[1:]) == [END] else 0.5


def level(folder: Path, runs: Path) -> Level:
    header = ("seed", "steps, TRL", "steps, Midstream", "mean reward, TRL", "mean reward, Midstream")
    return Level(f"D: learning by themselves ({STEPS} steps, reward {GOAL} over {OVER})", header, _lines(folder, runs))


def _lines(folder: Path, runs: Path) -> Iterator[Line]:
    theirs: list[list[float]] = []
    ours: list[list[float]] = []
    for seed in SEEDS:
        theirs.append(_theirs(folder, seed))
        ours.append(_ours(folder, seed, runs / str(seed)))
        steps = [_solved(theirs[-1]), _solved(ours[-1])]
        means = [f"{statistics.mean(curve):.3f}" for curve in (theirs[-1], ours[-1])]
        yield Line((str(seed), *(str(n) for n in steps), *means), max(steps) <= STEPS)
    steps = [[float(_solved(curve)) for curve in curves] for curves in (theirs, ours)]
    rewards = [[statistics.mean(curve) for curve in curves] for curves in (theirs, ours)]
    summary = [f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}" for values in (*steps, *rewards)]
    yield Line(("mean ± standard deviation", *summary), True)
    for_steps, for_rewards = _p_value(*steps), _p_value(*rewards)
    ok = min(for_steps, for_rewards) > SIGNIFICANT
    yield Line(("permutation test, p", f"{for_steps:.3f}", "", f"{for_rewards:.3f}", ""), ok)
    ratio = statistics.mean(steps[1]) / statistics.mean(steps[0])
    yield Line(("Midstream's steps / TRL's", f"{ratio:.2f}", "", "", ""), 1 / MOST_APART < ratio < MOST_APART)


def _solved(rewards: Sequence[float]) -> int:
    """The first step that ends `OVER` steps with a mean reward of `GOAL`; one more than there are when none does."""
    for step in range(OVER, len(rewards) + 1):
        if statistics.mean(rewards[step - OVER : step]) >= GOAL:
            return step
    return len(rewards) + 1


def _p_value(one: Sequence[float], other: Sequence[float]) -> float:
    """Of all ways to split the values in two such sets, the share with means at least as far apart."""
    values = [*one, *other]
    total = sum(values)

    def apart(chosen: Sequence[float]) -> float:
        return abs(sum(chosen) / len(one) - (total - sum(chosen)) / len(other))

    found = apart(one)
    splits = [apart(chosen) for chosen in combinations(values, len(one))]
    return sum(value >= found - 1e-12 for value in splits) / len(splits)


def _word_id(word: str) -> int:
    return len(SPECIAL) + words(VOCAB).index(word)


def _theirs(folder: Path, seed: int) -> list[float]:
    """TRL's reward at each step."""

    def reward(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        asked = [_word_id(prompt[-1]["content"]) for prompt in prompts]
        return [earned(reply, word) for reply, word in zip(completion_ids, asked, strict=True)]

    made = grpo_trainer(
        folder,
        TASKS * GROUP,
        rewards=[reward],
        prompts=[[{"role": "user", "content": word}] for word in words(VOCAB)[:ASKED]],
        num_generations=GROUP,
        max_steps=STEPS,
        max_completion_length=2,
        learning_rate=LR,
        adam_beta1=ADAM[0],
        adam_beta2=ADAM[1],
        epsilon=CLIP,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        shuffle_dataset=True,
        seed=seed,
    )
    made.train()
    return [row["reward"] for row in made.state.log_history if "reward" in row]


@ms.register_tasks("parity_words")
def _tasks(seed: int) -> ms.TaskSet:
    tasks = [ms.Task(id=word, prompt=word, answer=_word_id(word), split="train") for word in words(VOCAB)[:ASKED]]
    return ms.FiniteTaskSet("parity_words", tasks, seed)


@ms.component("parity_reply")
def _score(steps: Sequence[Any], reference: int) -> float:
    return earned(steps[-1].response_ids, reference)


def _ours(folder: Path, seed: int, run_dir: Path) -> list[float]:
    """Our reward at each step."""
    config = ms.load_config(
        {
            "policy": {"model": str(folder), "tuning": "full", "dtype": "float32"},
            "tasks": {"sources": [{"type": "parity_words"}], "seed": seed},
            "reward": {"components": {"parity_reply": 1.0}, "success": "parity_reply"},
            "rollout": {"tasks_per_step": TASKS, "group_size": GROUP, "sampling": {"max_tokens": 2}},
            "algorithm": {
                "name": "grpo",
                "eps": 1e-4,
                "loss": {"name": "ppo_clip", "clip_low": CLIP, "clip_high": CLIP},
                "kl": {"coef": 0.0, "measure_every": 0},
            },
            "optimizer": {"lr": LR, "betas": ADAM},
            "trainer": {
                "max_steps": STEPS,
                "save_every": STEPS,
                "eval_every": 0,
                "test_tasks": 0,
                "seed": seed,
                "run_dir": str(run_dir),
            },
        }
    )
    trainer.train(config)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["reward"] for row in rows]
