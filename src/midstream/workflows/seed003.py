"""Seed 003's `training.yaml`, read as a config of ours: every key has a counterpart, or a reason why it needs none.

`KEYS` is the table; `docs/workflows.md` shows it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from midstream.core.errors import ConfigError, nearest
from midstream.engines.gpus import find_devices
from midstream.workflows.executors import read_executors

KEYS: Mapping[str, str] = {
    "exp_name": "name",
    "max_steps": "trainer.max_steps",
    "eval_every": "trainer.eval_every",
    "save_every": "trainer.save_every",
    "seed": "trainer.seed",
    "output_dir": "trainer.run_dir",
    "base_model": "policy.model",
    "rollout_batch_size": "rollout.tasks_per_step",
    "num_return_sequences_in_group": "rollout.group_size",
    "learning_rate": "optimizer.lr",
    "warmup_steps": "optimizer.warmup_steps",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_grad_norm",
    "ppo_epochs": "trainer.epochs_per_batch",
    "clip_range": "algorithm.loss.clip_low and algorithm.loss.clip_high",
    "kl_loss_coef": "algorithm.kl.coef",
    "lora_rank": "policy.lora.rank",
    "lora_alpha": "policy.lora.alpha",
    "lora_target_modules": "policy.lora.targets",
    "domain_ratios": "tasks.sources[].ratio",
    "train_dataset": "tasks.sources[].type",
    "val_dataset": "tasks.sources[].type",
    "test_dataset": "tasks.sources[].type",
    "eval_samples": "trainer.val_tasks",
    "reward_weights": "reward.preset seed003-5 and reward.components",
    "execution_timeout": "flow.settings.run.timeout_s",
    "aflow_config_path": "flow.roles.executor",
    "executor_model": "flow.roles.executor.model",
    "temperature": "rollout.sampling.temperature",
    "top_p": "rollout.sampling.top_p",
    "max_new_tokens": "rollout.sampling.max_tokens",
    "device_mapping": "policy.device",
    "num_gpus": "policy.device",
    "physical_gpus": "policy.device",
    "protected_pids": "",
    "use_wandb": "trainer.wandb",
    "wandb_project": "trainer.wandb.project",
    "wandb_entity": "trainer.wandb.entity",
}
"""Our setting by the seed's key; "" where none is needed (`NOTES` says why)."""
NOTES: Mapping[str, str] = {
    "protected_pids": "no process that is not ours is ever ended, so all are protected",
}
NO_GPU = "there is no GPU here; the CPU is used"
NO_WANDB = "use_wandb: wandb is not installed (pip install 'midstream[wandb]'); metrics are in the run's folder"
OURS = ("exp_name", "rollout_batch_size", "num_return_sequences_in_group", "domain_ratios", "reward_weights")
"""A file with one of these is the seed's."""
_DOMAINS = {"math": "calculate", "code": "programs", "qa": "facts"}
"""Built-in tasks of a domain, where the seed's data files are not there."""
_REWARDS = ("correctness", "efficiency", "simplicity", "format", "repetition")
_DEFAULTS: Mapping[str, Any] = {
    "base_model": "Qwen/Qwen2.5-7B-Instruct",
    "max_steps": 500,
    "eval_every": 5,
    "save_every": 50,
    "rollout_batch_size": 4,
    "num_return_sequences_in_group": 4,
    "learning_rate": 1e-5,
    "ppo_epochs": 1,
    "domain_ratios": {"math": 0.4, "code": 0.3, "qa": 0.3},
    "lora_rank": 64,
    "lora_alpha": 64,
    "lora_target_modules": "q_proj,k_proj,v_proj,o_proj",
    "eval_samples": 50,
    "execution_timeout": 180,
    "clip_range": 0.2,
}
"""The seed's own values, for keys that a file leaves out."""


def is_seed003(data: Mapping[str, Any]) -> bool:
    """Whether a config has the seed's keys."""
    return any(key in data for key in OURS)


def translate(data: Mapping[str, Any], folder: Path = Path()) -> tuple[dict[str, Any], list[str]]:
    """The config that `data` (the seed's keys) amounts to, and notes on what is different. Paths in it are relative to
    `folder`. Raises `ConfigError` for an unknown key."""
    for key in data:
        if key not in KEYS:
            raise ConfigError(f"{key}: unknown key; {nearest(str(key), KEYS)}", "the table is in docs/workflows.md")
    given = {**_DEFAULTS, **data}
    notes = [f"{key}: {note}" for key, note in NOTES.items() if data.get(key)]
    settings: dict[str, Any] = {
        "name": str(given.get("exp_name", "workflow")),
        "policy": {
            "model": given["base_model"],
            "device": _device(given, notes),
            "lora": {
                "rank": given["lora_rank"],
                "alpha": given["lora_alpha"],
                "targets": _names(given["lora_target_modules"]),
            },
        },
        "tasks": {"sources": _sources(given, folder, notes)},
        "flow": {
            "name": "workflow_writer",
            "roles": {"executor": _executor(given, folder, notes)},
            "settings": {"run": {"timeout_s": given["execution_timeout"]}},
        },
        "reward": _reward(given.get("reward_weights")),
        "rollout": {
            "tasks_per_step": given["rollout_batch_size"],
            "group_size": given["num_return_sequences_in_group"],
            "sampling": _present(
                {"max_tokens": given.get("max_new_tokens", 1024), "temperature": given.get("temperature"),
                 "top_p": given.get("top_p")}
            ),
            "timeout_s": 2.0 * float(given["execution_timeout"]),
        },
        "algorithm": {"name": "grpo", **_algorithm(given)},
        "optimizer": _present(
            {"lr": given["learning_rate"], "warmup_steps": given.get("warmup_steps"),
             "weight_decay": given.get("weight_decay"), "max_grad_norm": given.get("max_grad_norm")}
        ),
        "trainer": _present(
            {"max_steps": given["max_steps"], "eval_every": given["eval_every"], "save_every": given["save_every"],
             "val_tasks": given["eval_samples"], "epochs_per_batch": given["ppo_epochs"], "seed": given.get("seed"),
             "run_dir": given.get("output_dir"), "wandb": _wandb(given, notes)}
        ),
    }  # fmt: skip
    return settings, notes


def _device(given: Mapping[str, Any], notes: list[str]) -> str:
    """The first of `physical_gpus`; else of `device_mapping`, which counts the GPUs that are visible; the CPU, with a
    note, where there is no GPU."""
    present = [one.index for one in find_devices()]
    if not present:
        notes.append(NO_GPU)
        return "auto"
    first, counted = (
        next(iter(value), None) if isinstance(value := given.get(key), list) else value
        for key in ("physical_gpus", "device_mapping")
    )
    if first is None:
        return "auto" if counted is None else f"cuda:{counted}"
    if first not in present:
        raise ConfigError(f"physical_gpus: there is no GPU {first} here; there is {present}", "see: midstream devices")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return f"cuda:{first}"
    numbers = [name.strip() for name in visible.split(",")]  # `cuda:0` is the first of these
    if str(first) not in numbers:
        raise ConfigError(
            f"physical_gpus: CUDA_VISIBLE_DEVICES={visible} hides GPU {first}", "unset it, or name the GPU in both"
        )
    return f"cuda:{numbers.index(str(first))}"


def _wandb(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """The settings of Weights & Biases, which is offline without a network; None without the package."""
    if not given.get("use_wandb"):
        return None
    if importlib.util.find_spec("wandb") is None:
        notes.append(NO_WANDB)
        return None
    return _present({"project": given.get("wandb_project"), "entity": given.get("wandb_entity")})


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the seed's keys, and of ours."""
    seeds = [one for one in overrides if one.partition("=")[0].strip().partition(".")[0] in KEYS]
    return seeds, [one for one in overrides if one not in seeds]


def _names(value: Any) -> list[str]:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)


def _present(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _algorithm(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given.get("clip_range") is not None:
        found["loss"] = {"name": "ppo_clip", "clip_low": given["clip_range"], "clip_high": given["clip_range"]}
    if given.get("kl_loss_coef") is not None:
        found["kl"] = {"coef": given["kl_loss_coef"]}
    return found


def _reward(weights: Any) -> dict[str, Any]:
    reward: dict[str, Any] = {"preset": "seed003-5", "success": "workflow_solved", "clip": [-10, 10]}
    if weights is None:
        return reward
    if not isinstance(weights, Mapping):
        raise ConfigError("reward_weights must hold a weight by dimension", f"dimensions: {', '.join(_REWARDS)}")
    for name in weights:
        if name not in _REWARDS:
            raise ConfigError(f"reward_weights.{name}: no such dimension; {nearest(str(name), _REWARDS)}")
    return {**reward, "components": {f"seed003_{name}": weights.get(name, 0.0) for name in _REWARDS}}


def _sources(given: Mapping[str, Any], folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    ratios = given["domain_ratios"]
    if not isinstance(ratios, Mapping) or not ratios or any(name not in _DOMAINS for name in ratios):
        raise ConfigError("domain_ratios must hold a ratio for math, code or qa", "{math: 0.4, code: 0.3, qa: 0.3}")
    files = {
        split: folder / str(given.get(f"{split}_dataset") or f"data/{split}/mixed_dataset.jsonl")
        for split in ("train", "val", "test")
    }
    present = {split: path for split, path in files.items() if path.is_file()}
    if present:
        return [
            {
                "type": str(path), "question": "problem", "answer": "ground_truth", "kind": domain, "split": split,
                "only": {"problem_type": domain}, "ratio": ratio, "reshuffle": split == "train",
            }
            for split, path in present.items()
            for domain, ratio in ratios.items()
            if ratio
        ]  # fmt: skip
    named = [name for name in ("train_dataset", "val_dataset", "test_dataset") if given.get(name)]
    if named:
        raise ConfigError(f"{named[0]}: there is no file '{files[named[0].partition('_')[0]]}'")
    notes.append("there is no data/train/mixed_dataset.jsonl; built-in tasks are used (calculate, programs, facts)")
    return [{"type": _DOMAINS[name], "ratio": ratio} for name, ratio in ratios.items() if ratio]


def _executor(given: Mapping[str, Any], folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / str(given.get("aflow_config_path") or "config/aflow_llm.yaml")
    if not path.is_file():
        if given.get("aflow_config_path"):
            raise ConfigError(f"aflow_config_path: there is no file '{path}'")
        notes.append("there is no config/aflow_llm.yaml; the model without its adapter executes workflows")
        return {"engine": "frozen", "train": False}
    executors = read_executors(path)
    name = str(given.get("executor_model") or next(iter(executors)))
    if name not in executors:
        raise ConfigError(f"executor_model: '{path}' has no '{name}'; {nearest(name, executors)}")
    chosen = executors[name]
    variable = chosen.api_key_env or (chosen.api_key or "").strip("${}")
    if chosen.api_key is not None and chosen.api_key_env is None and not chosen.api_key.startswith("$"):
        raise ConfigError(
            f"'{path}' holds the key of '{name}' itself, and a run would keep it",
            "export OPENAI_API_KEY=... and write api_key: ${OPENAI_API_KEY}",
        )
    return _present({"engine": chosen.engine, "model": chosen.model, "api_key_env": variable or None, "train": False})


def dump(settings: Mapping[str, Any]) -> str:
    """A translated config as YAML."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
