"""TRL's side: its trainers, set up to run on a CPU in fp32 without the network, and batches as they take them."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.parity.models import load_model, load_tokenizer
from benchmarks.parity.rows import Row
from torch import Tensor
from transformers import PrinterCallback

# By name: types are checked without the extra that brings these two.
trl: Any = import_module("trl")
datasets: Any = import_module("datasets")

warnings.filterwarnings("ignore", category=FutureWarning)
transformers.logging.set_verbosity_error()
logging.getLogger("trl").setLevel(logging.ERROR)
transformers.logging.disable_progress_bar()

RewardFunction = Callable[..., Sequence[float | None]]


def _shared(rows: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments every trainer is given: nothing that changes the maths is left to a default meant for a GPU."""
    return {
        "output_dir": tempfile.gettempdir(),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        "shuffle_dataset": False,
        "logging_steps": 1,
        "per_device_train_batch_size": rows,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        **settings,
    }


def _ready(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    # `train` sets this at each step; where a method is called without it, one micro-batch is one step.
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def _no_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


class Stored:
    """Completions that a trainer is handed in place of sampling, batch after batch, and what they earned."""

    def __init__(self, batches: Iterable[Sequence[Row]]) -> None:
        self._batches = iter(batches)
        self._rows: Sequence[Row] = ()

    def rollout(self, prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        """A `rollout_func` of `GRPOTrainer`."""
        prompt_ids, completion_ids, _ = self.generate(prompts)
        output = {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}
        masked = any(0 in row.mask for row in self._rows)
        return output | ({"env_mask": [list(row.mask) for row in self._rows]} if masked else {})

    def generate(self, prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """A `_generate` of `RLOOTrainer`: ids of prompts and of completions, and texts, which nothing reads."""
        rows = self._rows = next(self._batches)
        assert len(rows) == len(prompts)
        return [list(row.prompt_ids) for row in rows], [list(row.completion_ids) for row in rows], [""] * len(rows)

    def reward(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """A reward function."""
        return [row.reward for row in self._rows]


def grpo_trainer(
    folder: Path,
    rows: int,
    *,
    rewards: Sequence[RewardFunction] = (_no_reward,),
    stored: Stored | None = None,
    prompts: Sequence[Any] = (),
    **settings: Any,
) -> Any:
    """A `GRPOTrainer` of the model in `folder`, for micro-batches of `rows` completions; `settings` go to
    `GRPOConfig`."""
    return _ready(
        trl.GRPOTrainer(
            model=load_model(folder),
            reward_funcs=list(rewards),
            args=trl.GRPOConfig(**_shared(rows, {"num_generations": 2, **settings})),
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts or ["w0"] * rows]),
            processing_class=load_tokenizer(folder),
            rollout_func=stored.rollout if stored else None,
        )
    )


def rloo_trainer(folder: Path, rows: int, *, rewards: Sequence[RewardFunction], stored: Stored, **settings: Any) -> Any:
    """A `RLOOTrainer` of the model in `folder`; `settings` go to `RLOOConfig`."""
    trainer = _ready(
        trl.RLOOTrainer(
            model=load_model(folder),
            reward_funcs=list(rewards),
            args=trl.RLOOConfig(**_shared(rows, settings)),
            train_dataset=datasets.Dataset.from_list([{"prompt": "w0"}] * rows),
            processing_class=load_tokenizer(folder),
        )
    )
    trainer._generate = stored.generate  # it takes no `rollout_func`
    return trainer


def inputs_of(rows: Sequence[Row], *, with_mask: bool, with_reference: bool) -> dict[str, Tensor]:
    """A batch as `GRPOTrainer._compute_loss` takes it: prompts padded on the left, completions on the right."""

    def padded(values: Sequence[Sequence[float]], side: str, dtype: torch.dtype, filler: int = 0) -> Tensor:
        return trl.trainer.utils.pad(
            [torch.tensor(value, dtype=dtype) for value in values], padding_value=filler, padding_side=side
        )

    inputs = {
        "prompt_ids": padded([row.prompt_ids for row in rows], "left", torch.long),
        "prompt_mask": padded([[1] * len(row.prompt_ids) for row in rows], "left", torch.long),
        "completion_ids": padded([row.completion_ids for row in rows], "right", torch.long),
        "completion_mask": padded([[1] * len(row.completion_ids) for row in rows], "right", torch.long),
        "advantages": torch.tensor([row.reward for row in rows]),
        "old_per_token_logps": padded([row.old_log_probs for row in rows], "right", torch.float32),
        "num_items_in_batch": torch.tensor(sum(sum(row.mask) for row in rows)),
    }
    if with_mask:
        inputs["tool_mask"] = padded([row.mask for row in rows], "right", torch.long, 1)
    if with_reference:
        inputs["ref_per_token_logps"] = padded([row.reference_log_probs for row in rows], "right", torch.float32)
    return inputs
