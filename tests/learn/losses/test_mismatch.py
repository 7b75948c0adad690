"""Sampler / learner mismatch: measured in every step, corrected for while it is large, and cheap while it is not."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.row_dependent import row_dependent_products

from midstream import api
from midstream.learn.algorithms.base import CorrectionConfig
from midstream.learn.losses.mismatch import clipped, corrects_next, mismatch
from midstream.learn.losses.ratio import CISPO, PPOClip, ReinforceLoss
from midstream.learn.losses.sequence import GSPO
from midstream.learn.run.checkpoint import read_state
from midstream.rewards import component

METRICS = ("mean_abs", "k3", "ess", "p999", "clipped", "tokens")


@component("letters_for_mismatch")
def letters(answer: str | None) -> float:
    """Share of letters in the answer."""
    return sum(c.isalpha() for c in answer or "") / max(len(answer or ""), 1)


def rows_of(tiny_path: Path, run: Path, steps: int, *, resume: bool = False, **changed: Any) -> list[dict[str, Any]]:
    """The rows of a deterministic run of `steps` steps."""
    settings: dict[str, Any] = {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 4}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"letters_for_mismatch": 1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 12}},
        "algorithm": {"name": "rloo", **changed.get("algorithm", {})},
        "optimizer": {"lr": 0.001},
        "trainer": {
            "max_steps": steps,
            "save_every": 1,
            "eval_every": 0,
            "test_tasks": 0,
            "threads": 1,
            "deterministic": True,
            "run_dir": str(run),
            **changed.get("trainer", {}),
        },
    }
    api.train(settings, callbacks=(), resume=resume, force=resume)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_metrics_by_hand() -> None:
    d = [np.array([math.log(2.0), 0.0]), np.array([math.log(0.5), 0.0])]
    found = mismatch(d, PPOClip())
    rho = np.array([2.0, 1.0, 0.5, 1.0])
    assert found["mismatch/mean_abs"] == pytest.approx(math.log(2) / 2)
    assert found["mismatch/k3"] == pytest.approx((rho - 1 - np.log(rho)).mean())
    assert found["mismatch/ess"] == pytest.approx(rho.sum() ** 2 / (4 * (rho**2).sum()))
    assert found["mismatch/p999"] == pytest.approx(math.log(2)) and found["mismatch/tokens"] == 4
    assert mismatch([], PPOClip()) == {}


def test_a_token_counts_as_clipped_by_what_its_loss_bounds() -> None:
    d = [np.array([0.25, -0.25]), np.array([0.0, -0.1])]
    # PPO's bounds are log 0.8 = -0.223 and log 1.3 = 0.262: only -0.25 is outside.
    assert clipped(d, PPOClip(clip_low=0.2, clip_high=0.3)) == 0.25
    # GSPO bounds the mean over the turn: 0 in the first, -0.05 in the second.
    assert clipped(d, GSPO(clip_low=0.01, clip_high=0.01)) == 0.5
    assert clipped(d, CISPO(upper=1.2)) == 0.25
    assert clipped(d, ReinforceLoss()) == 0.0


def test_a_correction_begins_above_the_threshold_and_ends_below_half_of_it() -> None:
    auto = CorrectionConfig(threshold=0.01)
    assert corrects_next(False, 0.011, auto) and not corrects_next(False, 0.009, auto)
    assert corrects_next(True, 0.006, auto) and not corrects_next(True, 0.005, auto)
    # Nothing was measured: nothing changes.
    assert corrects_next(True, None, auto) and not corrects_next(False, None, auto)
    assert not corrects_next(False, 1.0, CorrectionConfig(level="none"))


def test_while_sampler_and_learner_agree_every_step_measures_and_none_corrects(tiny_path, tmp_path: Path) -> None:
    rows = rows_of(tiny_path, tmp_path / "run", 3)
    for row in rows:
        assert {f"mismatch/{name}" for name in METRICS} <= row.keys() and row["corrected"] == 0
        assert row["mismatch/p999"] < 1e-4 and row["mismatch/clipped"] == 0
        assert row["mismatch/tokens"] == row["loss_tokens"]
        # A step of one update: what it reports of the samples is the mismatch.
        assert row["max:log_ratio"] >= row["mismatch/p999"]
    never = rows_of(tiny_path, tmp_path / "never", 3, algorithm={"correction": {"level": "none"}})
    assert [row["loss"] for row in never] == [row["loss"] for row in rows]


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_large_mismatch_is_corrected_from_the_next_step_and_a_resumed_run_does_the_same(
    tiny_path, tmp_path: Path, caplog: pytest.LogCaptureFixture, minibatches: int
) -> None:
    settings = {"algorithm": {"correction": {"threshold": 1e-4}}, "trainer": {"minibatches": minibatches}}
    with row_dependent_products(0.2):
        with caplog.at_level(logging.WARNING, "midstream.learn.run.step"):
            whole = rows_of(tiny_path, tmp_path / "whole", 3, **settings)
            begun = sum("ratios are relative to the learner's own pass" in record.message for record in caplog.records)
        rows_of(tiny_path, tmp_path / "cut", 2, **settings)
        cut = rows_of(tiny_path, tmp_path / "cut", 3, resume=True, **settings)
    assert [row["corrected"] for row in whole] == [0, 1, 1]
    assert begun == 1
    assert whole[0]["clipped"] > 0 and whole[0]["mismatch/clipped"] > 1e-4
    # The distance to the sampler is still reported, and no longer clips anything in a step of one update.
    assert whole[1]["mismatch/clipped"] > 1e-4 and whole[1]["importance_mean"] != 1
    if minibatches == 1:
        assert whole[1]["clipped"] == 0
    for name in ("loss", "grad_norm", "importance_mean", "mismatch/k3", "corrected"):
        assert cut[2][name] == whole[2][name], name
    assert read_state(tmp_path / "cut" / "checkpoints" / "step-000003").correcting


def test_a_correction_ends_when_sampler_and_learner_agree_again(
    tiny_path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"algorithm": {"correction": {"threshold": 1e-4}}}
    with row_dependent_products(0.2):
        rows_of(tiny_path, tmp_path / "run", 2, **settings)
    with caplog.at_level(logging.WARNING, "midstream.learn.run.step"):
        rows = rows_of(tiny_path, tmp_path / "run", 4, resume=True, **settings)
    assert [row["corrected"] for row in rows] == [0, 1, 1, 0]
    assert sum("relative to the sampler again" in record.message for record in caplog.records) == 1


def test_a_corrected_step_of_one_update_costs_no_further_pass(tiny_path, tmp_path: Path) -> None:
    plain = rows_of(tiny_path, tmp_path / "plain", 1, algorithm={"correction": {"level": "none"}})
    token = rows_of(tiny_path, tmp_path / "token", 1, algorithm={"correction": {"level": "token"}})
    assert token[0]["computed_tokens"] == plain[0]["computed_tokens"]
    # Sampler and learner agree, so both are the same update.
    assert token[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)
