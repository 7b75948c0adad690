"""Seed 003's files and keys work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from midstream import api
from midstream.api import load_config
from midstream.core.errors import ConfigError
from midstream.engines.gpus import Device
from midstream.learn.config import TrainConfig
from midstream.tasks import load_tasks
from midstream.tasks.taskset import take
from midstream.workflows.seed003 import KEYS, NO_GPU, NOTES, translate

TRAINING = """
exp_name: "aflow_grpo_hybrid_prompts"
max_steps: 500
eval_every: 5
save_every: 50
rollout_batch_size: 4
num_return_sequences_in_group: 4
learning_rate: 1.0e-5
ppo_epochs: 1
device_mapping: [0]
physical_gpus: [2]
num_gpus: 1
protected_pids: [3819483]
domain_ratios:
  math: 0.4
  code: 0.3
  qa: 0.3
lora_rank: 64
lora_alpha: 64
lora_target_modules: "q_proj,k_proj,v_proj,o_proj"
reward_weights:
  correctness: 0.65
  efficiency: 0.15
  simplicity: 0.10
  format: 0.05
  repetition: 0.05
use_wandb: true
wandb_project: "agent-prompt"
wandb_entity: "your-entity"
"""
"""The seed's file, without comments."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "training.yaml").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_yaml_is_a_config(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config("config/training.yaml", ["base_model=tiny", "max_steps=7", "optimizer.lr=2e-5"])
    assert config.name == "aflow_grpo_hybrid_prompts" and config.flow.name == "workflow_writer"
    assert (config.trainer.max_steps, config.trainer.eval_every, config.trainer.save_every) == (7, 5, 50)
    assert (config.rollout.tasks_per_step, config.rollout.group_size) == (4, 4)
    assert config.trainer.val_tasks == 50 and config.optimizer.lr == 2e-5 and config.trainer.epochs_per_batch == 1
    assert config.policy.model == "tiny" and config.policy.lora.rank == 64
    assert config.policy.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert config.reward.weights["seed003_correctness"] == 0.65 and config.reward.clip == (-10, 10)
    assert [(one.type, one.ratio) for one in config.tasks.sources] == [
        ("calculate", 0.4), ("programs", 0.3), ("facts", 0.3)
    ]  # fmt: skip
    assert config.flow.roles["executor"].engine == "frozen" and not config.flow.roles["executor"].train
    assert config.flow.settings["run"]["timeout_s"] == 180
    assert load_config("config/training.yaml").policy.model == "Qwen/Qwen2.5-7B-Instruct"


def test_data_files_and_the_executor_of_the_seed_are_used(project: Path) -> None:
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        folder = project / "data" / split
        folder.mkdir(parents=True)
        rows = [
            {"problem": f"{split} {n}?", "problem_type": ("math", "code", "qa")[n % 3], "ground_truth": str(n)}
            for n in range(count)
        ]
        (folder / "mixed_dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "config" / "aflow_llm.yaml").write_text(
        "models:\n  gpt-4o-mini:\n    api_type: openai\n    base_url: https://api.openai.com/v1\n"
        "    api_key: ${OPENAI_API_KEY}\n"
    )
    config = load_config("config/training.yaml")
    executor = config.flow.roles["executor"]
    assert (executor.engine, executor.model) == ("https://api.openai.com/v1", "gpt-4o-mini")
    assert executor.api_key_env == "OPENAI_API_KEY"
    assert {source.split for source in config.tasks.sources if source.reshuffle} == {"train"}
    tasks = take(load_tasks(config.tasks), "train", 30)
    kinds = [task.kind for task in tasks]
    assert [kinds.count(kind) for kind in ("math", "code", "qa")] == [12, 9, 9]
    assert all(task.question.startswith("train") for task in tasks) and tasks[0].metadata["problem_type"] == kinds[0]
    assert {task.split for task in take(load_tasks(config.tasks), "val", 5)} == {"val"}


def test_training_yaml_trains(project: Path) -> None:
    small = [
        "base_model=tiny", "max_steps=1", "eval_every=1", "eval_samples=2", "rollout_batch_size=1", "max_new_tokens=16",
        "num_return_sequences_in_group=2", "execution_timeout=5", "trainer.test_tasks=2", "trainer.threads=1",
    ]  # fmt: skip
    result = api.train(load_config("config/training.yaml", small), callbacks=())
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "rl"] == [1]
    evaluated = [json.loads(line) for line in (result.run_dir / "evals.jsonl").read_text().splitlines()]
    assert {(row["split"], row["n"]) for row in evaluated} == {("val", 2), ("test", 2)}


@pytest.mark.parametrize(
    ("gpus", "given", "visible", "device"),
    [
        ((), ["physical_gpus=[2]"], None, "auto"),
        ((0, 2), ["physical_gpus=[2]"], None, "cuda:2"),
        ((0, 2), ["physical_gpus=[2]"], "2", "cuda:0"),
        ((0, 2), ["physical_gpus=[2]"], "0, 2", "cuda:1"),
        ((0, 2), ["physical_gpus=null"], None, "cuda:0"),
        ((0, 2), ["physical_gpus=null", "device_mapping=null"], "2", "auto"),
    ],
)
def test_physical_gpus_choose_the_device(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[int, ...],
    given: list[str],
    visible: str | None,
    device: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = [Device(index, "H100", 0, 81559, 0) for index in gpus]
    monkeypatch.setattr("midstream.workflows.seed003.find_devices", lambda: found)
    settings, notes = translate({**yaml.safe_load(TRAINING), **yaml.safe_load("\n".join(given).replace("=", ": "))})
    assert settings["policy"]["device"] == device
    assert notes.count(NO_GPU) == (not gpus)


def test_mistakes_are_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("midstream.workflows.seed003.find_devices", lambda: [Device(0, "H100", 0, 81559, 0)])
        with pytest.raises(ConfigError, match=r"there is no GPU 2 here; there is \[0\]"):
            load_config("config/training.yaml")
        patch.setattr("midstream.workflows.seed003.find_devices", lambda: [Device(2, "H100", 0, 81559, 0)])
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=0,1 hides GPU 2"):
            load_config("config/training.yaml")
    for change, said in (
        ("lora_rnk=3", "lora_rnk"),
        ("reward_weights.correct=1", "did you mean 'correctness'"),
        ("domain_ratios.maths=1", "math, code or qa"),
        ("train_dataset=data/none.jsonl", "there is no file"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config("config/training.yaml", [change])
    (project / "config" / "aflow_llm.yaml").write_text(
        "models:\n  gpt-4o-mini: {api_type: openai, base_url: 'https://x/v1', api_key: 'sk-proj-1234567890abcdefgh'}\n"
    )
    with pytest.raises(ConfigError, match="holds the key of 'gpt-4o-mini' itself"):
        load_config("config/training.yaml")


def test_every_key_of_the_seed_is_mapped_or_explained() -> None:
    assert set(yaml.safe_load(TRAINING)) <= set(KEYS)
    for key, ours in KEYS.items():
        first = re.split(r"[. \[]", ours)[0]
        assert first in TrainConfig.model_fields if ours else key in NOTES or key.startswith("wandb"), key


def test_the_table_in_the_docs_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "workflows.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", page, re.MULTILINE))
    for key, ours in KEYS.items():
        assert key in rows, f"docs/workflows.md has no row for {key}"
        assert not ours or ours.split(" ")[0].split("[")[0] in rows[key], key
