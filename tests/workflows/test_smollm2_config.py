"""`configs/workflow_smollm2.yaml` runs, here with `tiny` in place of SmolLM2."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from midstream.api import load_config, train
from midstream.core.errors import ConfigError
from midstream.learn.run.setup import build
from midstream.learn.run.warm_start import demonstrate
from midstream.record.store import Store
from midstream.workflows import read_workflow

CONFIG = Path(__file__).parents[2] / "configs" / "workflow_smollm2.yaml"
TINY = ["policy.model=tiny", "policy.lora.last_layers=null", "warm_start.examples=8"]


def test_one_step_is_sampled_run_and_learned_from(tmp_path: Path) -> None:
    sampling = ["rollout.tasks_per_step=1", "rollout.group_size=2", "rollout.sampling.max_tokens=12"]
    trainer = ["trainer.max_steps=1", "trainer.test_tasks=2", f"trainer.run_dir={tmp_path / 'run'}"]
    result = train(load_config(str(CONFIG), [*TINY, *sampling, *trainer]), callbacks=())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evals = [json.loads(line) for line in (tmp_path / "run" / "evals.jsonl").read_text().splitlines()]
    assert result.status == "finished"
    assert [row["stage"] for row in rows] == ["warm_start"] * 4 + ["rl"]
    assert [(row["label"], row["split"], row["n"]) for row in evals] == [
        ("base", "test", 2),
        ("warm start", "test", 2),
        ("final", "test", 2),
    ]
    with Store(tmp_path / "run" / "store.sqlite", read_only=True) as store:
        sampled = list(store.trajectories.iterate(channel="train"))
    # Random weights write no workflow, which costs 0.2.
    assert [(one.metadata["workflow"]["valid"], round(one.reward or 0, 6)) for one in sampled] == [(False, -0.2)] * 2


def test_the_demonstrations_are_workflows_and_use_every_operator() -> None:
    config = load_config(str(CONFIG), [*TINY, "warm_start.examples=40"])
    made = build(config)
    texts = [
        made.tokenizer.text_of(step.response_ids)
        for one in asyncio.run(demonstrate(made))
        for step in one.steps
        if step.trainable
    ]
    workflows = [read_workflow(text) for text in texts]
    assert len(workflows) == 40
    assert {one.operator for each in workflows for one in each.instances} == {"Custom", "Programmer", "Search"}


def test_a_cache_of_replies_cannot_be_deterministic() -> None:
    with pytest.raises(ConfigError, match=r"flow\.settings\.cache"):
        load_config(str(CONFIG), ["trainer.deterministic=true"])
    assert load_config(str(CONFIG), ["trainer.deterministic=true", "flow.settings.cache=false"]).trainer.deterministic
