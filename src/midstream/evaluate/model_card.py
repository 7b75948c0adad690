"""Writes the README of an exported model: origin, training, evaluation and use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from midstream.core.secrets import text_without_secrets
from midstream.evaluate.runs import is_run, load_run
from midstream.learn.config import TrainConfig

_HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
USE_MODEL = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
"""
USE_ADAPTER = """\
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")
"""


def model_card(checkpoint: Path, config: TrainConfig, whole: bool, adapter: str = "") -> str:
    """Return the model card of the policy in `checkpoint`, a whole model or an adapter. Contains no local paths.
    `adapter` is its name, which tells its roles in a run with several."""
    from huggingface_hub import ModelCardData

    base = _base(config.policy.model)
    data: Any = ModelCardData(
        base_model=base if "/" in base else None,
        library_name="transformers" if whole else "peft",
        pipeline_tag="text-generation",
        tags=["midstream", "reinforcement-learning", config.algorithm.name],
    )
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    lora = config.policy.lora
    tuning = "every weight" if config.policy.tuning == "full" else f"LoRA, rank {lora.rank}, alpha {lora.alpha:g}"
    facts = [
        ("base model", base),
        ("trained", f"{tuning}{', merged into the base' if whole and config.policy.tuning == 'lora' else ''}"),
        ("algorithm", f"{config.algorithm.name}, loss {config.algorithm.loss.name}"),
        ("steps", f"{state['step']} (of {config.rollout.tasks_per_step} tasks x {config.rollout.group_size} attempts)"),
        ("learning rate", f"{config.optimizer.lr:g}"),
        ("tasks", ", ".join(_shown(source.type) for source in config.tasks.sources) or "recorded by a gateway"),
        ("agent flow", config.flow.name),
        *([("roles", ", ".join(roles))] if (roles := _roles(config, adapter)) else []),
        ("reward", ", ".join(f"{name} x {weight:g}" for name, weight in config.reward.weights.items())),
        ("seed", str(config.trainer.seed)),
    ]
    lines = [
        f"# {_cell(config.name)}",
        "",
        f"A language model trained as an agent with Midstream, {'' if whole else 'as an adapter '}on top of {base}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in facts),
        "",
        *_evaluations(checkpoint.resolve().parent.parent),
        "## Use",
        "",
        "```python",
        (USE_MODEL if whole else USE_ADAPTER).format(folder="this folder").rstrip(),
        "```",
        "",
    ]
    return f"---\n{data.to_yaml().strip()}\n---\n\n" + "\n".join(lines)


def _roles(config: TrainConfig, adapter: str) -> list[str]:
    """Return the roles that the config gives an `adapter` other than the run's default."""
    return [role for role, own in config.flow.roles.items() if own.adapter == adapter != config.policy.adapter]


def _evaluations(run: Path) -> list[str]:
    """Return the lines of a table of the run's evaluations on held-out tasks; empty without any."""
    if not is_run(run):
        return []
    rows = [row for row in load_run(run).evals if row.get("split") == "test" and "success" in row]
    if not rows:
        return []
    cells = [
        f"| {_cell(str(row['label']))} | {row['n']} | {row['success']:.2f} | {row['low']:.2f} to {row['high']:.2f} |"
        for row in rows
    ]
    head = ["| weights | held-out tasks | success, greedy | 95 % interval |", "| --- | --- | --- | --- |"]
    return ["## Evaluation", "", *head, *cells, ""]


def _base(model: str) -> str:
    """Return the public name of the base model."""
    return _HUB_IDS.get(model) or _shown(model)


def _shown(name: str) -> str:
    """Return `name`, or only its last part if it is a local path."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or name.startswith(".") or path.exists() else name


def _cell(text: str) -> str:
    return " ".join(text_without_secrets(text).replace("|", "\\|").split())
