"""The files of a finished run, written without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midstream.core.statistics import wilson

HOSTILE = "<script>alert('x')</script> & </pre>"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f'seed: 3\nname: "{HOSTILE}"\n')
    info = {"name": "first", "created": "2026-01-02T03:04:05", "status": "finished", "model": "tiny", "seed": 3}
    (path / "run.json").write_text(json.dumps({**info, "versions": {"torch": "2.13.0"}}))
    warm = [{"stage": "warm_start", "step": 0, "update": n, "loss": 2 / n, "time_s": 1.0} for n in (1, 2, 3)]
    rl = [_metrics(step) for step in range(1, 41)]
    write_rows(path / "metrics.jsonl", warm + rl)
    write_rows(
        path / "evals.jsonl",
        [
            _evaluation("base", 0, "test", 2),
            _evaluation("warm start", 0, "test", 20),
            _evaluation("step 20", 20, "val", 40),
            _evaluation("final", 40, "test", 54),
        ],
    )
    write_rows(path / "samples.jsonl", [_sample("base", False), _sample("final", True)])
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _metrics(step: int) -> dict[str, Any]:
    success = step / 40
    row: dict[str, Any] = {"stage": "rl", "step": step, "reward": success - 0.05, "success": success, "turns": 2.0}
    row |= {"time_s": 4.0, "tokens_per_s": 400.0, "kl": None if step == 5 else 0.001 * step}
    return row | {"rewards/answer": success, "rewards/cost": -0.05, "success/facts": success}


def _evaluation(label: str, step: int, split: str, successes: int) -> dict[str, Any]:
    low, high = wilson(successes, 60)
    whole = {"n": 60, "success": successes / 60, "low": low, "high": high}
    row: dict[str, Any] = {"label": label, "step": step, "split": split, **whole, "reward": 0.5, "turns": 2.0}
    return row | {"tool_error_rate": 0.1, "by_kind": {"facts": whole}}


def _sample(label: str, success: bool) -> dict[str, Any]:
    turns = [
        {
            "role": "planner",
            "text": HOSTILE,
            "tool": "search",
            "arguments": {"query": HOSTILE},
            "result": HOSTILE,
            "ok": True,
        },
        {"role": "verifier", "text": "", "verdict": HOSTILE},
    ]
    sample = {"label": label, "kind": HOSTILE, "question": HOSTILE, "answer": HOSTILE, "reference": HOSTILE}
    return {**sample, "success": success, "reward": 1.0, "rewards": {HOSTILE: None}, "turns": turns}
