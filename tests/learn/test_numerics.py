"""Runs whose rows depend on their number: they repeat and resume to the same numbers in every mode, and say which mode
they are in."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.row_dependent import row_dependent_products

from midstream.core.errors import ConfigError, RunError
from midstream.engines.chat import load_tokenizer
from midstream.engines.factory import EngineSettings, make_policy_engine
from midstream.engines.publication import FOLDER, published
from midstream.engines.torch import numerics
from midstream.evaluate.agent import find_agent, load_agent
from midstream.evaluate.agreement import contents
from midstream.learn.config import TrainConfig
from midstream.learn.run.trainer import train

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


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_run_repeats_and_resumes_to_the_same_numbers(configure: Configure, mode: str) -> None:
    with row_dependent_products(SIZE):
        for name in ("first", "second"):
            train(configure(name, mode))
        broken = configure("broken", mode)
        with pytest.raises(InterruptedError):
            train(broken, callbacks=[Stop()])
        train(broken, resume=True)
    first = outcome(configure("first", mode))
    assert outcome(configure("second", mode)) == first
    assert outcome(broken) == first
    kept = info(broken)["numerics"]
    assert kept["mode"] == kept["asked"] == mode
    assert kept["rows"]["block"] == (64 if mode == "exact" else None)
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


def rewrite(config: TrainConfig, **changes: Any) -> None:
    """Change the numerics that a run recorded, as if another machine had begun it."""
    path = Path(str(config.trainer.run_dir)) / "run.json"
    data = json.loads(path.read_text())
    data["numerics"] |= changes
    path.write_text(json.dumps(data))


def test_a_resume_with_another_number_of_threads_says_so(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    train(configure("threads", "fast", max_steps=1))
    with caplog.at_level(logging.WARNING, "midstream.engines.torch.numerics"):
        train(configure("threads", "fast", max_steps=1), resume=True)
        assert not caplog.records
        rewrite(configure("threads", "fast"), threads=7)
        train(configure("threads", "fast", max_steps=1), resume=True)
    (record,) = caplog.records
    assert "threads: 7 -> 1" in record.getMessage() and "trainer.threads" in record.getMessage()


def test_evaluations_and_gateways_compute_as_the_run_recorded(configure: Configure) -> None:
    config = configure("recorded", "auto", max_steps=1)
    train(config)
    run = Path(str(config.trainer.run_dir))
    rewrite(config, mode="fast", rows=info(config)["numerics"]["rows"] | {"block": 32})
    source = find_agent(run=run)
    parts = load_agent(source, trust=True)
    assert (parts.numerics.mode, parts.decoder.rows.block) == ("fast", 32)
    # An override is the user's own choice.
    assert load_agent(source, ["policy.numerics=fast"], trust=True).decoder.rows.block is None

    async def serve(run_first: bool) -> Any:
        settings = EngineSettings(model=config.policy.model, dtype="float32", run=run if run_first else None)
        async with AsyncExitStack() as stack:
            engine: Any = await make_policy_engine(settings, load_tokenizer(Path(config.policy.model)), stack)
            assert (engine.decoder.rows.block == 32) == run_first
            await engine.load_weights(published(run / FOLDER)[-1])
            return engine

    # Also where the run, or its first checkpoint, came after the gateway.
    for run_first in (True, False):
        assert asyncio.run(serve(run_first)).decoder.rows.block == 32


def test_a_run_with_exact_numerics_can_be_asked_where_they_are_not_possible(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = configure("exact", "exact", max_steps=1)
    train(config)
    monkeypatch.setattr(numerics, "dependent_product", lambda decoder: "rows depend on their number")
    source = find_agent(run=str(config.trainer.run_dir))
    with caplog.at_level(logging.WARNING, "midstream.engines.torch.numerics"):
        parts = load_agent(source, trust=True)
    assert parts.numerics.mode == "fast"
    (record,) = (record for record in caplog.records if record.name == "midstream.engines.torch.numerics")
    assert "begun with exact numerics, which this machine does not give" in record.getMessage()
    rewrite(config, dtype="load")  # as good as none
    assert load_agent(source, trust=True).numerics.mode == "fast"
    with pytest.raises(ConfigError, match=r"policy\.numerics is exact"):
        load_agent(source, ["policy.numerics=exact", "policy.dtype=bfloat16"], trust=True)
