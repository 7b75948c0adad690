"""Runs whose rows depend on their number: they repeat and resume to the same numbers in every mode, and say which mode
they are in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.row_dependent import row_dependent_products

from midstream.core.errors import RunError
from midstream.evaluate.agreement import contents
from midstream.learn.config import TrainConfig
from midstream.learn.trainer import train

SIZE = 1e-5
"""Enough to show in every log-probability, and far below what matters to a ratio."""

Configure = Callable[..., TrainConfig]


@pytest.fixture
def configure(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    (tmp_path / "vowels_reward.py").write_text(
        "def vowels(steps):\n    text = ''.join(step.text for step in steps)\n"
        "    return sum(c in 'aeiou' for c in text) / max(len(text), 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, numerics: str, max_steps: int = 4) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "name": name,
                "policy": {
                    "model": str(tiny_path),
                    "dtype": "float32",
                    "numerics": numerics,
                    "lora": {"rank": 2, "alpha": 4},
                },
                "tasks": {"sources": [{"type": "calculate"}]},
                "flow": {"name": "single_step_single_turn_agent"},
                "reward": {"components": {"vowels_reward:vowels": 1.0}},
                "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 8}},
                "optimizer": {"lr": 0.01},
                "trainer": {
                    "run_dir": str(tmp_path / name),
                    "deterministic": True,
                    "threads": 1,
                    "max_steps": max_steps,
                    "save_every": 2,
                    "eval_every": 0,
                    "test_tasks": 0,
                },
            }
        )

    return make


class Stop:
    """A callback that ends a run after its third step, of which no checkpoint was made."""

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["step"] == 3:
            raise InterruptedError

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None: ...


def info(config: TrainConfig) -> dict[str, Any]:
    return json.loads((Path(str(config.trainer.run_dir)) / "run.json").read_text())


def outcome(config: TrainConfig) -> Any:
    """Whatever must be the same in two runs that are."""
    return contents(Path(str(config.trainer.run_dir)))


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_run_repeats_and_resumes_to_the_same_numbers(configure: Configure, numerics: str) -> None:
    with row_dependent_products(SIZE):
        for name in ("first", "second"):
            train(configure(name, numerics))
        broken = configure("broken", numerics)
        with pytest.raises(InterruptedError):
            train(broken, callbacks=[Stop()])
        train(broken, resume=True)
    first = outcome(configure("first", numerics))
    assert outcome(configure("second", numerics)) == first
    assert outcome(broken) == first
    kept = info(broken)["numerics"]
    assert kept["mode"] == kept["asked"] == numerics
    assert kept["rows"]["block"] == (64 if numerics == "exact" else None)
    plain = configure("plain", "fast")
    train(plain)
    # Else equal numbers would say nothing of rows that depend on their number.
    assert outcome(plain) != first


def test_a_run_names_its_mode_first_and_keeps_it(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    from midstream.api import train as train_and_print

    config = configure("kept", "auto", max_steps=1)
    train_and_print(config)
    lines = capsys.readouterr().out.splitlines()
    begun = info(config)["numerics"]
    assert lines[1].startswith(f"numerics: {begun['mode']}, float32 on cpu") and "1 thread" in lines[1]
    assert f"<b>numerics</b> {begun['mode']}" in (Path(str(config.trainer.run_dir)) / "report.html").read_text()
    train(config, resume=True)
    assert info(config)["numerics"] == begun


def test_a_run_begun_exact_does_not_go_on_where_that_cannot_be(configure: Configure) -> None:
    begun = configure("moved", "exact", max_steps=1)
    train(begun)
    if info(begun)["numerics"]["rows"]["block"]:
        pytest.skip("exact in blocks here, which the double does not disturb")
    with row_dependent_products(SIZE):
        with pytest.raises(RunError, match="begun with exact numerics, which this machine does not give"):
            train(begun, resume=True)
        other = configure("moved", "fast", max_steps=2)
        with pytest.raises(RunError, match=r"policy\.numerics: 'exact' -> 'fast'"):
            train(other, resume=True)
        train(other, resume=True, force=True)
    assert info(other)["numerics"]["mode"] == "fast" and info(other)["status"] == "finished"
