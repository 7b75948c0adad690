"""`midstream tune`: trials are trainings, compared on validation; a search goes on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from midstream.api import load_config, tune
from midstream.core.errors import ConfigError, RunError, TrainingError
from midstream.evaluate.runs import read_rows
from midstream.learn.run.trainer import Training
from midstream.learn.tune import study
from midstream.learn.tune.study import RunningTrial, Trial
from midstream.rewards import component

pytest.importorskip("optuna")

SEARCH = {"optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True}, "rollout.group_size": [2, 3]}


@component("letters_for_tune")
def letters(answer: str | None) -> float:
    return sum(map(str.isalpha, answer or "")) / max(len(answer or ""), 1)


def config(tiny_path: Path, folder: Path, search: Any = SEARCH, **settings: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "policy": {"model": str(tiny_path), "tuning": "full", "dtype": "float32", "numerics": "exact"},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"letters_for_tune": 1.0}, "success": "letters_for_tune", "success_at": 0.5},
        "rollout": {"tasks_per_step": 1, "group_size": 2, "sampling": {"max_tokens": 3}},
        "algorithm": {"name": "reinforce", "kl": {"coef": 0.0}},
        "trainer": {
            "max_steps": 2,
            "eval_every": 1,
            "val_tasks": 2,
            "test_tasks": 4,
            "threads": 1,
            "deterministic": True,
            "run_dir": str(folder),
        },
        "tune": {"search": search, "startup_trials": 2, **settings},
    }


def test_the_best_trial_on_validation_becomes_the_config(tiny_path: Path, tmp_path: Path) -> None:
    seen: list[Trial] = []
    result = tune(config(tiny_path, tmp_path / "search", metric="reward"), 2, on_trial=seen.append)
    assert (result.status, len(result.trials), [one.number for one in seen]) == ("finished", 2, [0, 1])
    assert result.best is not None and result.best.score == max(one.score for one in seen if one.score is not None)
    assert result.config is not None
    best = load_config(result.config)
    assert best.optimizer.lr == result.best.settings["optimizer.lr"]
    assert best.rollout.group_size == result.best.settings["rollout.group_size"]
    assert best.tune is None and best.trainer.run_dir is None and best.trainer.test_tasks == 4
    for trial in seen:
        evals = read_rows(tmp_path / "search" / f"trial-{trial.number:03d}" / "seed-0" / "evals.jsonl")
        assert {row["split"] for row in evals} == {"val"}  # never the test split
        if trial.score is not None:
            assert trial.score == evals[-1]["reward"]
    assert json.loads((tmp_path / "search" / "trials.json").read_text())[0]["settings"] == seen[0].settings


def test_the_score_is_the_mean_over_seeds(tiny_path: Path, tmp_path: Path) -> None:
    found = tune(config(tiny_path, tmp_path / "s", metric="reward", seeds=2), 1).trials[0]
    runs = [tmp_path / "s" / "trial-000" / f"seed-{number}" for number in (0, 1)]
    finals = [read_rows(run / "evals.jsonl")[-1]["reward"] for run in runs]
    assert found.score == sum(finals) / 2
    first, second = ([row["reward"] for row in read_rows(run / "metrics.jsonl")] for run in runs)
    assert first != second


def test_an_interrupted_search_goes_on_and_proposes_what_it_would_have(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(config(tiny_path, tmp_path / "whole", metric="reward"), 2)
    once = Training.run

    async def killed(training: Training) -> Any:
        result = await once(training)
        if "trial-001" in str(result.run_dir):
            raise KeyboardInterrupt  # after the training, before its score is in the journal
        return result

    monkeypatch.setattr(Training, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(config(tiny_path, tmp_path / "cut", metric="reward"), 2)
    monkeypatch.setattr(Training, "run", once)
    with pytest.raises(RunError, match="--resume"):
        tune(config(tiny_path, tmp_path / "cut", metric="reward"), 2)
    with pytest.raises(RunError, match="config changed"):
        tune(config(tiny_path, tmp_path / "cut", metric="success"), 2, resume=True)
    assert tune(config(tiny_path, tmp_path / "cut", metric="reward"), 2, resume=True).trials == whole.trials


def test_a_trial_below_the_median_ends_early(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningTrial, "hopeless", lambda trial, score, step: (trial.number, step) == (1, 1))
    result = tune(config(tiny_path, tmp_path / "search"), 2)
    assert [one.state for one in result.trials] == ["complete", "pruned"]
    assert len(read_rows(tmp_path / "search" / "trial-001" / "seed-0" / "metrics.jsonl")) == 1


def test_a_training_that_cannot_go_on_is_a_failed_trial(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Training.run

    async def diverges(training: Training) -> Any:
        if "trial-000" in str(training._config.trainer.run_dir):
            raise TrainingError("step 1: the gradient is not finite")
        return await once(training)

    monkeypatch.setattr(Training, "run", diverges)
    result = tune(config(tiny_path, tmp_path / "some"), 2)
    assert [one.state for one in result.trials] == ["failed", "complete"]
    assert "not finite" in result.trials[0].reason
    with pytest.raises(RunError, match="not finite"):
        tune(config(tiny_path, tmp_path / "none"), 1)


def test_settings_that_do_not_fit_together_are_a_failed_trial(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suggest(trial: Any, path: str, values: Any) -> Any:
        trial.suggest_categorical(path, values.choices)
        return 3 if (trial.number, path) == (0, "trainer.max_steps") else values.choices[0]

    monkeypatch.setattr(study, "_suggest", suggest)
    search = {"trainer.max_steps": [2, 3, 4], "trainer.eval_every": [2]}
    result = tune(config(tiny_path, tmp_path / "search", search), 2)
    assert [one.state for one in result.trials] == ["failed", "complete"]
    assert "the last step (3) is not evaluated" in result.trials[0].reason


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"optimizer.rl": {"low": 1e-5, "high": 1e-3}}, "unknown key; one of: betas, lr"),
        ({"optimizer.lr": {"low": -1.0, "high": 1e-3}}, "greater than 0"),
        ({"optimizer.lr": {"low": 1e-3}}, "low and high"),
        ({"optimizer.lr": {"low": 1e-2, "high": 1e-3}}, "must be below high"),
        ({"optimizer.lr": {"low": 0.0, "high": 1e-3, "log": True}}, "low above 0"),
        ({"trainer.test_tasks": [0, 8]}, "the same in all trials"),
        ({"tasks.seed": [0, 8]}, "the same in all trials"),
        ({"trainer.max_steps": [2, 3], "trainer.eval_every": [2]}, "not evaluated"),
        ({"name.first": [1]}, "the same in all trials"),
        ({}, "at least 1 item"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_it_begins(
    tiny_path: Path, tmp_path: Path, search: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        tune(config(tiny_path, tmp_path / "search", search), 1)
    assert not (tmp_path / "search").exists()


def test_a_config_without_a_search(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no section `tune`"):
        tune({key: value for key, value in config(tiny_path, tmp_path).items() if key != "tune"}, 1)
