"""Exported policies: transformers and peft load them and compute the policy's log-probabilities."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from midstream import api, cli
from midstream.core.errors import ConfigError, RunError
from midstream.core.types import Step
from midstream.engines.torch.attention import TreeAttention, merge_prefixes
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.evaluate.agent import find_agent, load_agent
from midstream.rewards import component


@component("even_ids")
def even_ids(steps: Sequence[Step]) -> float:
    """Share of even token ids, which a model with random weights can learn."""
    ids = [token for step in steps for token in step.response_ids]
    return sum(token % 2 == 0 for token in ids) / len(ids)


IDS = [(7 * place * place + 3) % 400 for place in range(60)]


def trained(folder: Path, tiny_path: Path, tuning: str) -> Path:
    settings: dict[str, Any] = {
        "name": tuning,
        "policy": {"model": str(tiny_path), "tuning": tuning, "dtype": "float32", "lora": {"rank": 3, "alpha": 12}},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"even_ids": 1.0}, "success": "even_ids", "success_at": 0.5},
        "rollout": {"tasks_per_step": 2, "group_size": 4, "sampling": {"max_tokens": 5}},
        "algorithm": {"name": "grpo", "kl": {"coef": 0.0}},
        "optimizer": {"lr": 0.05},
        "trainer": {"max_steps": 2, "eval_every": 0, "test_tasks": 4, "threads": 1, "run_dir": str(folder / tuning)},
    }
    return api.train(settings, callbacks=()).run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    """A folder with two trained runs, `lora` and `full`."""
    folder = tmp_path_factory.mktemp("runs")
    for tuning in ("lora", "full"):
        trained(folder, tiny_path, tuning)
    return folder


def log_probs(decoder: Decoder) -> torch.Tensor:
    tree = merge_prefixes([IDS])
    attend = TreeAttention(tree, decoder.heads // decoder.kv_heads, decoder.dtype)
    with torch.no_grad():
        return decoder.logits(decoder(tree.tokens, tree.positions, attend)[: tree.size]).log_softmax(-1)


def policy(run: Path) -> torch.Tensor:
    decoder = load_agent(find_agent(run=run)).decoder
    assert isinstance(decoder, Decoder)
    return log_probs(decoder)


def theirs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].log_softmax(-1)


def load_theirs(folder: Path) -> Any:
    """Load the model in `folder` with transformers; no weight may be missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    loaded: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert AutoTokenizer.from_pretrained(str(folder)).chat_template
    assert GenerationConfig.from_pretrained(str(folder)).eos_token_id == 2
    return model


def test_a_fully_tuned_policy_has_no_adapter_to_export(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a fully tuned policy, which has no adapter"):
        api.export("full", tmp_path / "out", adapter="policy", runs_dir=runs)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_all_roles_share_is_exported_by_its_name(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "lora", run)
    for file in run.rglob("config.yaml"):
        config = yaml.safe_load(file.read_text())
        config["flow"]["roles"] = {"policy": {"adapter": "solver"}}
        file.write_text(yaml.safe_dump(config))
    folder = api.export(run, tmp_path / "out", adapter="solver")
    assert (folder / "adapter_model.safetensors").is_file()
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        api.export(run, tmp_path / "other", adapter="other")


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_transformers_loads_an_exported_model_and_gives_the_policys_log_probs(
    runs: Path, tiny_path: Path, tuning: str, tmp_path: Path
) -> None:
    arguments = ["export", tuning, "--merge", "--out", str(tmp_path / "model"), "--runs-dir", str(runs)]
    assert cli.run(arguments) == 0
    ours = policy(runs / tuning)
    assert (theirs(load_theirs(tmp_path / "model")) - ours).abs().max() < 1e-4
    assert (log_probs(load_decoder(tiny_path, torch.float32)) - ours).abs().max() > 0.05  # training moved it
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_peft_loads_an_exported_adapter_and_gives_the_policys_log_probs(runs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    folder = api.export("lora", tmp_path / "adapter", runs_dir=runs)
    assert not (folder / "model.safetensors").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    assert (theirs(model) - policy(runs / "lora")).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_dtype_of_an_exported_model_is_the_bases_or_the_requested_one(
    runs: Path, tmp_path: Path, dtype: str
) -> None:
    folder = api.export("lora", tmp_path / "model", merge=True, dtype=dtype, runs_dir=runs)  # type: ignore[arg-type]
    assert load_theirs(folder).dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def test_a_fully_tuned_checkpoint_loads_in_transformers_and_here(runs: Path) -> None:
    checkpoint = runs / "full" / "checkpoints" / "step-000002"
    assert (theirs(load_theirs(checkpoint)) - policy(runs / "full")).abs().max() < 1e-4
    row = api.evaluate(model=str(checkpoint), tasks="direct", n=2, overrides=["rollout.sampling.max_tokens=3"])
    assert row["n"] == 2
    assert torch.equal(log_probs(load_decoder(checkpoint, torch.float32)), policy(runs / "full"))


def test_the_model_card_describes_the_training_without_local_paths(runs: Path, tiny_path: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    folder = api.export(runs / "lora" / "checkpoints" / "step-000002", tmp_path / "model", merge=True)
    text = (folder / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "transformers" and {"midstream", "grpo"} <= set(data["tags"])
    for expected in ("LoRA, rank 3, alpha 12, merged into the base", "grpo", "| final | 4 |", "even_ids x 1", "direct"):
        assert expected in text, expected
    assert str(tiny_path) not in text and str(runs) not in text
    assert (
        ModelCard((api.export("lora", tmp_path / "a", runs_dir=runs) / "README.md").read_text()).data.to_dict()[
            "library_name"
        ]
        == "peft"
    )


def test_a_failed_export_leaves_no_folder(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(RunError, match="already exists"):
        api.export("lora", tmp_path / "taken", merge=True, runs_dir=runs)
    with pytest.raises(ConfigError, match="this is an adapter"):
        api.export("lora", tmp_path / "new", dtype="bfloat16", runs_dir=runs)
    with pytest.raises(RunError, match="no run 'gone'"):
        api.export("gone", tmp_path / "new", runs_dir=runs)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


class Hub:
    """Replaces the hub's client; accepts every upload."""

    pushed: list[tuple[Any, ...]] = []

    def whoami(self) -> None: ...

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.pushed.append((repo, private))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.pushed.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_a_model_is_pushed_as_private_by_default(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "pushed", [])
    api.export("lora", tmp_path / "model", push="me/mine", runs_dir=runs)
    made, uploaded = Hub.pushed
    assert made == ("me/mine", True) and uploaded[0] == "me/mine"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(uploaded[1])
    api.export("lora", tmp_path / "again", push="me/mine", public=True, runs_dir=runs)
    assert Hub.pushed[2] == ("me/mine", False)


@pytest.mark.parametrize(("offline", "repo"), [(True, "me/mine"), (False, "me/mine"), (False, "not a name")])
def test_an_unreachable_hub_is_reported_before_the_export(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, repo: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=f"cannot push to '{repo}' on the hub: ") as caught:
        api.export("lora", tmp_path / "model", push=repo, runs_dir=runs)
    assert "hf auth login" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
