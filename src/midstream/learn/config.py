"""The config of a training run. `midstream config --schema` prints it; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from midstream.agents.config import FlowConfig
from midstream.core.config import Config, apply_overrides, load_yaml, parse_config
from midstream.learn.algorithms import AlgorithmConfig
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.rollout_config import TrainRolloutConfig
from midstream.rewards import RewardConfig
from midstream.tasks import TasksConfig


class LoraConfig(Config):
    """Low-rank adapters beside the frozen model."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Projections that get one (`q_proj`, `down_proj`, ...); none named means all."""
    last_layers: int | None = Field(default=None, ge=1)
    """Only this many of the last layers get one: those below then cost no backward pass and keep no activations."""


class PolicyConfig(Config):
    """The model in training."""

    model: str = "smollm2-135m"
    """A known name (see `midstream models list`), a directory, or a hub id."""
    tuning: Literal["lora", "full"] = "lora"
    """Train adapters, or every weight."""
    lora: LoraConfig = LoraConfig()
    """Adapter settings, for `tuning: lora`."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` measures a product in both at the start of a run, and is bfloat16 where that is at least 1.25 times as
    fast."""
    device: str = "auto"
    """`auto` is `cuda` where there is one, else `cpu`."""
    numerics: Literal["auto", "exact", "fast"] = "auto"
    """`exact`: sampler and learner give a token the same log-probability to the bit, and a run stops where this machine
    cannot. `fast`: as fast as the kernels go, with what difference there is. `auto` measures at the start of a run, and
    is exact where that takes at most 1.1 times the time."""


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019)."""

    lr: float = Field(default=1e-4, gt=0)
    """Learning rate after warm-up, constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm is clipped to this."""

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas


class WarmStartConfig(Config):
    """A short supervised start that shows the notation before reinforcement learning begins."""

    examples: int = Field(default=0, ge=0)
    """Demonstrations, made from training tasks with a `demonstration` in their metadata; 0 is no warm start."""
    epochs: int = Field(default=2, ge=1)
    """Passes over them."""
    batch_size: int = Field(default=16, ge=1)
    """Demonstrations an update."""
    lr: float = Field(default=5e-4, gt=0)
    """Learning rate at the start; it falls to 0 in a line."""
    wrong: float = Field(default=0.0, ge=0, le=1)
    """Share of the demonstrations whose first action is one with a wrong tool: teaches how to write actions and go on,
    not which tool to begin with."""


class TrainerConfig(Config):
    """The loop."""

    max_steps: int = Field(default=100, ge=1)
    """Steps of the loop: a rollout, then `minibatches` updates for each of `epochs_per_batch`."""
    seed: int = 0
    """Fixes everything that is drawn."""
    deterministic: bool = False
    """What is computed together depends on the trajectories, never on timing: a run repeats to the bit on one
    machine."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; torch's default when not given."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Passes over each batch of trajectories."""
    minibatches: int = Field(default=1, ge=1)
    """Updates a pass over the batch is cut into."""
    max_tokens_per_pass: int = Field(default=4096, ge=256)
    """Distinct tokens of one forward and backward pass; bounds memory, never changes the gradient. A longer turn has a
    pass of its own, with those that share nearly all of it."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer for the backward pass and compute the rest again there: less memory for one more
    forward pass."""
    save_every: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    eval_every: int = Field(default=10, ge=0)
    """Steps between evaluations on val; 0 never."""
    val_tasks: int = Field(default=32, ge=1)
    """Tasks of an evaluation on val."""
    test_tasks: int = Field(default=64, ge=0)
    """Tasks of the evaluations on test, before and after; 0 for none."""
    run_dir: str | None = None
    """Where the run is kept; `runs/<name of the config>` when not given."""


class TrainConfig(Config):
    """Everything a run needs."""

    name: str = Field(default="run", pattern=r"^[^./\\][^/\\]*$")
    """Name of the run; the config file's name when loaded from one."""
    policy: PolicyConfig = PolicyConfig()
    """The model."""
    tasks: TasksConfig = TasksConfig()
    """What it is trained and evaluated on."""
    flow: FlowConfig = FlowConfig()
    """The agent around it."""
    reward: RewardConfig = RewardConfig()
    """What a trajectory is worth."""
    rollout: TrainRolloutConfig = TrainRolloutConfig()
    """How trajectories are made."""
    algorithm: AlgorithmConfig = FlowGRPO()
    """How trajectories become an update."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer of reinforcement learning."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """The supervised start."""
    trainer: TrainerConfig = TrainerConfig()
    """The loop."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if not self.tasks.sources and self.rollout.source is None:
            raise ValueError("tasks.sources: at least one is required (or rollout.source, to train from a store)")
        if self.rollout.source is not None and self.rollout.backfill:
            raise ValueError("rollout.backfill makes further attempts, which a rollout.source cannot; set it to 0")
        if self.rollout.source is not None and self.algorithm.greedy_baseline:
            raise ValueError(f"'{self.algorithm.name}' needs greedy attempts, which a rollout.source does not have")
        alone = self.rollout.group_size == 1 and self.rollout.source is None
        if alone and self.algorithm.needs_group:
            raise ValueError(
                f"rollout.group_size is 1, but '{self.algorithm.name}' compares the trajectories of a task with each "
                "other and needs at least 2; raise rollout.group_size or set algorithm.name=reinforce"
            )
        if alone and self.reward.normalize == "group":
            raise ValueError(
                "rollout.group_size is 1, and reward.normalize=group makes the reward of a group of one 0; raise "
                "rollout.group_size or set reward.normalize=running"
            )
        if self.rollout.failed == "score" and self.reward.failed is None:
            raise ValueError(
                "rollout.failed is 'score', but reward.failed does not say what a failed trajectory is worth"
            )
        algorithm, kl = self.algorithm, self.algorithm.kl
        if algorithm.rewards_as_given:
            shifted = [
                setting
                for setting, on in (
                    (f"reward.normalize={self.reward.normalize}", self.reward.normalize != "none"),
                    ("algorithm.kl.placement=reward", kl.placement == "reward" and kl.coef > 0),
                    ("rollout.failed=score", algorithm.name == "gdpo" and self.rollout.failed == "score"),
                )
                if on
            ]
            if shifted:
                raise ValueError(
                    f"'{algorithm.name}' needs rewards as they were given, which {' and '.join(shifted)} would change "
                    "or not give by component; leave it out, or take another algorithm"
                )
        if self.policy.tuning == "full" and kl.reference == "base" and (kl.coef > 0 or "reference" in algorithm.reads):
            raise ValueError(
                "algorithm.kl.reference 'base' is the model without its adapter, which needs policy.tuning 'lora'; "
                "set algorithm.kl.coef=0 or algorithm.kl.reference=start"
            )
        if algorithm.one_update and self.trainer.epochs_per_batch * self.trainer.minibatches > 1:
            raise ValueError(
                f"the advantages of '{algorithm.name}' hold for one update; "
                "set trainer.epochs_per_batch=1 and trainer.minibatches=1"
            )
        return self


ALSO_CALLED = {
    "actor_rollout_ref.rollout.agent.default_agent_flow": "flow.name",
    "actor_rollout_ref.rollout.agent.agent_flow_config_path": "flow.flows_file",
}
"""Keys of verl's command line that overrides may use for ours."""


def our_names(overrides: Sequence[str]) -> list[str]:
    """`overrides` with verl's keys replaced by ours; a leading `+`, as Hydra has it for new keys, is dropped there."""
    translated: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        ours = ALSO_CALLED.get(key.strip().removeprefix("+"))
        translated.append(override if ours is None else f"{ours}{equals}{value}")
    return translated


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config with dotted overrides (`trainer.max_steps=30`); raises `ConfigError` that names what is
    wrong."""
    data: dict[str, Any] = apply_overrides(load_yaml(path), our_names(overrides))
    data.setdefault("name", Path(path).stem)
    return parse_config(TrainConfig, data, f"'{path}'" if not overrides else f"'{path}' with {' '.join(overrides)}")
