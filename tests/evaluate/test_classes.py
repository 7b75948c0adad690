"""Tasks whose answer is a label: from a recorded file to a trained, exported model, with a report by class."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from midstream import api, cli
from midstream.core.classification import classification_report
from midstream.core.types import Task, Trajectory
from midstream.evaluate.runs import read_rows
from midstream.rewards.summary import summarise

CLASSES = ("positive", "negative", "neutral")


def answered(answer: str | None, label: Any) -> Trajectory:
    return Trajectory(uid="u", prompt_uid="p", task=Task(id="t", prompt="?", answer=label), answer=answer)


def test_an_evaluation_reports_by_class() -> None:
    pairs = [("Positive.", "positive"), ("negative", "positive"), ("none of it", "negative"), (None, "neutral")]
    found = summarise([answered(*pair) for pair in pairs], lambda one: False, CLASSES)["classification"]
    predicted = ["positive", "negative", None, None]
    assert found == asdict(classification_report([label for _, label in pairs], predicted, CLASSES))


def test_answers_that_are_no_labels_are_no_classification() -> None:
    assert "classification" not in summarise([answered("4", "4"), answered("1", 1)], lambda one: False, CLASSES)
    assert "classification" not in summarise([answered("positive", "positive")], lambda one: True)


def test_train_and_eval_print_the_report_before_and_after(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reviews = [(f"{word} thing {n}", label) for n in range(8) for word, label in zip("gbo", CLASSES, strict=True)]
    rows = [
        {"question": text, "answer": label, "split": "test" if at % 4 == 0 else "train"}
        for at, (text, label) in enumerate(reviews)
    ]
    Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "policy": {"model": str(tiny_path), "tuning": "full", "dtype": "float32"},
        "tasks": {"sources": [{"type": "reviews.jsonl"}]},
        "reward": {"classes": list(CLASSES)},
        "rollout": {"tasks_per_step": 1, "group_size": 2, "sampling": {"max_tokens": 2}},
        "algorithm": {"name": "reinforce", "kl": {"coef": 0.0}},
        "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 6, "threads": 1, "run_dir": "run"},
    }
    Path("reviews.yaml").write_text(json.dumps(config))
    assert cli.run(["train", "reviews.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "base, by class:" in printed and "final, by class:" in printed and printed.count("macro avg") == 2
    evals = read_rows(Path("run/evals.jsonl"))
    assert all(set(row["classification"]["by_class"]) == set(CLASSES) for row in evals)
    assert cli.run(["eval", "--run", "run"]) == 0
    assert "weighted avg" in capsys.readouterr().out
    assert api.evaluate(run="run")["classification"] == evals[-1]["classification"]
    assert cli.run(["export", "run", "--out", "model"]) == 0
    assert api.evaluate(model="model", tasks="reviews.jsonl", n=1)["n"] == 1
