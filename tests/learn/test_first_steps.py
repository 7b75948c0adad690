"""What a run says and writes as it begins: small splits, nothing to resume, evaluations for TensorBoard, prompts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import TaskError
from midstream.learn.data.splits import check_splits
from midstream.tasks import file_tasks

QUESTIONS = 8


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What our loggers say."""
    messages: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    log, listening = logging.getLogger("midstream"), Listening()
    log.addHandler(listening)
    yield messages
    log.removeHandler(listening)


def settings(tiny_path: Path, folder: Path, **trainer: Any) -> dict[str, Any]:
    return {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"length": -1.0}},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 3}},
        "trainer": {
            "max_steps": 2,
            "eval_every": 1,
            "val_tasks": 3,
            "test_tasks": 4,
            "threads": 1,
            "run_dir": str(folder / "run"),
            **trainer,
        },
    }


@pytest.fixture(scope="module")
def trained(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its first step and resumed."""
    folder = tmp_path_factory.mktemp("first")
    api.train(settings(tiny_path, folder, max_steps=1), callbacks=())
    longer = settings(tiny_path, folder)
    return api.train(longer, resume=True, force=True, callbacks=()).run_dir


def test_tensorboard_has_metrics_and_evaluations_once_each(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("reward")] == [1, 2]
    assert [event.step for event in events.Scalars("eval/val/success")] == [0, 1, 2]
    assert {0, 2} <= {event.step for event in events.Scalars("eval/test/success")}
    assert "eval/test/success/direct" in events.Tags()["scalars"]


def test_samples_and_the_report_hold_the_prompts_as_the_model_read_them(trained: Path) -> None:
    samples = [json.loads(line) for line in (trained / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        prompt = sample["turns"][0]["prompt"]
        assert prompt.startswith("<|im_start|>") and prompt.endswith("<|im_start|>assistant\n")
        assert sample["question"] in prompt
    assert "&lt;|im_start|&gt;assistant" in (trained / "report.html").read_text()


def test_a_resume_with_nothing_there_says_so_and_begins(tiny_path: Path, tmp_path: Path, lines: list[str]) -> None:
    config = settings(tiny_path, tmp_path, max_steps=1, eval_every=0, test_tasks=0)
    assert api.train(config, resume=True, callbacks=()).status == "finished"
    assert [line for line in lines if f"no run in '{tmp_path / 'run'}' to resume" in line]


def test_a_split_smaller_than_asked_for_is_one_line(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"{n}?", "answer": "a", "split": "test" if n < 2 else "train"} for n in range(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = file_tasks(path)
    check_splits(tasks, {"train": 1, "test": 2})
    assert lines == []
    check_splits(tasks, {"train": 1, "test": 64})
    assert lines == ["the split 'test' of 'mine' has 2 tasks, fewer than the 64 requested: all are used"]
    with pytest.raises(TaskError, match=r"no task in split 'val'") as raised:
        check_splits(tasks, {"val": 1})
    assert "trainer.eval_every=0" in str(raised.value) and "train (6)" in str(raised.value)


def test_training_and_asking_work_beside_a_running_loop(tiny_path: Path, tmp_path: Path) -> None:
    async def cell() -> tuple[str, str, str]:
        config = settings(tiny_path, tmp_path, max_steps=1, eval_every=0, test_tasks=0)
        blocking = api.train(config, callbacks=()).status
        config["trainer"]["run_dir"] = str(tmp_path / "again")
        awaited = await api.train_async(config, callbacks=())
        answer = (await api.ask_async("a?", run=awaited.run_dir)).status
        assert api.ask("a?", run=awaited.run_dir).status == answer
        return blocking, awaited.status, answer

    assert asyncio.run(cell()) == ("finished", "finished", "completed")


def test_an_interrupt_while_a_notebook_trains_saves_and_stops(tiny_path: Path, tmp_path: Path) -> None:
    from midstream.core.blocking import run_blocking
    from midstream.learn.run.trainer import Training

    class AtStep:
        """Asks the run to stop in its first step, as an interrupt of the kernel does."""

        def on_start(self, info: dict[str, Any]) -> None: ...

        def on_metrics(self, row: dict[str, Any]) -> None:
            training.stop()

        def on_eval(self, row: dict[str, Any]) -> None: ...

        def on_finish(self, result: dict[str, Any]) -> None: ...

    config = api.load_config(settings(tiny_path, tmp_path, max_steps=50, eval_every=0, test_tasks=0))
    training = Training(config, [AtStep()])

    async def cell() -> str:
        return run_blocking(training.run(), interrupt=training.stop).status

    assert asyncio.run(cell()) == "stopped"
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
