"""Config of a training run. `midstream config --schema` prints it. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from midstream.agents.config import FlowConfig
from midstream.core.config import Config, apply_overrides, load_yaml, parse_config
from midstream.engines.publication import NAME, POLICY
from midstream.learn.algorithms import AlgorithmConfig
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.rollout_config import TrainRolloutConfig
from midstream.learn.tune.config import TuneConfig
from midstream.rewards import RewardConfig
from midstream.tasks import TasksConfig


class LoraConfig(Config):
    """Low-rank adapters on the frozen model."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Projections with an adapter (`q_proj`, `down_proj`, ...); empty means all."""
    last_layers: int | None = Field(default=None, ge=1)
    """Number of last layers with adapters. Layers below cost no backward pass and keep no activations. None means all
    layers."""


class PolicyConfig(Config):
    """The trainable model."""

    model: str = "smollm2-135m"
    """A known name (see `midstream models list`), a directory, or a hub id."""
    tuning: Literal["lora", "full"] = "lora"
    """Train adapters (`lora`) or all weights (`full`)."""
    lora: LoraConfig = LoraConfig()
    """Adapter settings, for `tuning: lora`."""
    engine: tuple[str, ...] = ("torch",)
    """What samples in training: `torch` is this process, from the weights being trained. One URL or several are vLLM
    servers of `model`, which load the adapter after each update. `midstream eval` and `ask` always use this process."""
    api_key_env: str | None = None
    """Environment variable with the API key of the servers of `engine`."""
    adapter: str = POLICY
    """Name under which the weights are published and recorded, and under which vLLM servers load them; that of roles
    without an `adapter` of their own. Runs that share a server need different names."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """`auto` times a matrix product in both types at the start of a run and chooses bfloat16 when it is at least 1.25
    times as fast."""
    device: str = "auto"
    """`auto` is `cuda` when available, else `cpu`."""
    numerics: Literal["auto", "exact", "fast"] = "auto"
    """`exact`: sampler and learner compute bit-identical log-probabilities; the run stops when this machine cannot.
    `fast`: the fastest kernels, with small differences. `auto` measures both at the start of a run and chooses `exact`
    when it takes at most 1.1 times the time."""

    @property
    def remote(self) -> bool:
        """Whether other processes sample."""
        return self.engine != ("torch",)

    @field_validator("engine", mode="before")
    @classmethod
    def _listed(cls, engine: Any) -> Any:
        return (engine,) if isinstance(engine, str) else engine

    @field_validator("engine")
    @classmethod
    def _known(cls, engine: tuple[str, ...]) -> tuple[str, ...]:
        urls = all(name.startswith(("http://", "https://")) for name in engine)
        if not engine or not (urls or engine == ("torch",)):
            raise ValueError("must be torch, or the URLs of vLLM servers")
        return engine

    @field_validator("adapter")
    @classmethod
    def _name(cls, adapter: str) -> str:
        if not NAME.fullmatch(adapter):
            raise ValueError("must be letters, digits, dots, dashes and underscores, and begin with a letter or digit")
        return adapter


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019)."""

    lr: float = Field(default=1e-4, gt=0)
    """Learning rate; constant after warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Updates over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm; larger gradients are clipped."""

    @field_validator("betas")
    @classmethod
    def _decays(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each must be at least 0 and less than 1")
        return betas


class WarmStartConfig(Config):
    """Supervised fine-tuning before reinforcement learning: on demonstrations, on the policy's own successes, or on
    recorded trajectories."""

    source: str = "demonstrations"
    """`demonstrations`: tool calls in the metadata of the tasks (`demonstration`), carried out by the flow.
    `successes`: attempts of the untrained policy itself that succeed. Otherwise the path of trajectories to imitate: a
    store, or a file from `midstream store export`."""
    examples: int = Field(default=0, ge=0)
    """Number of training tasks that are demonstrated or attempted, or most trajectories taken from a file. 0 disables
    the warm start."""
    attempts: int = Field(default=8, ge=1)
    """For `successes`: attempts at each task, sampled as in training."""
    at_least: float | None = None
    """For `successes` and files: least reward of a trajectory that is imitated. Null means those that succeed by
    `reward.success`; for files, by the reward that is recorded."""
    epochs: int = Field(default=2, ge=1)
    """Passes over the trajectories."""
    batch_size: int = Field(default=16, ge=1)
    """Trajectories per update."""
    lr: float = Field(default=5e-4, gt=0)
    """Initial learning rate; it decays linearly to 0."""
    wrong: float = Field(default=0.0, ge=0, le=1)
    """For `demonstrations`: share of them whose first action uses a wrong tool. These teach how to write an action and
    continue, not which tool to start with."""


class WandbConfig(Config):
    """Logging to Weights & Biases, beside the files of the run."""

    project: str = "midstream"
    """Project of the runs."""
    entity: str | None = None
    """User or team; null is that of the key."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto` is `online` where WANDB_API_KEY is set and the server answers, else `offline`: into the run's folder,
    for `wandb sync`."""


class TrainerConfig(Config):
    """The training loop."""

    max_steps: int = Field(default=100, ge=1)
    """Training steps: each is a rollout, then `minibatches` updates for each of `epochs_per_batch`."""
    seed: int = 0
    """Seed of all random draws."""
    deterministic: bool = False
    """Batch computation by trajectory instead of by timing, so that a run repeats bit for bit on one machine."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; null means torch's default."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Passes over each batch of trajectories."""
    minibatches: int = Field(default=1, ge=1)
    """Updates per pass over the batch."""
    max_tokens_per_pass: int = Field(default=4096, ge=256)
    """Maximum distinct tokens per forward and backward pass; bounds memory and never changes the gradient. A longer
    turn gets its own pass, shared only with turns that have nearly all tokens in common."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest: less memory for one more forward
    pass."""
    save_every: int = Field(default=10, ge=1)
    """Training steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    publish_every: int | None = Field(default=None, ge=1)
    """Training steps between publications of the weights, for gateways that follow the run. Every checkpoint is
    published too; null publishes nothing else. With a remote `policy.engine` every update is published."""
    eval_every: int = Field(default=10, ge=0)
    """Training steps between evaluations on val; 0 disables them."""
    val_tasks: int = Field(default=32, ge=1)
    """Tasks per evaluation on val."""
    test_tasks: int = Field(default=64, ge=0)
    """Tasks per evaluation on test, before and after training; 0 disables them."""
    wandb: WandbConfig | None = None
    """Log to Weights & Biases too; needs `midstream[wandb]`."""
    run_dir: str | None = None
    """Run directory; null means `runs/<name of the config>`."""


class TrainConfig(Config):
    """Config of a training run."""

    name: str = Field(default="run", pattern=r"^[^./\\][^/\\]*$")
    """Name of the run; defaults to the name of the config file."""
    policy: PolicyConfig = PolicyConfig()
    """The trainable model."""
    tasks: TasksConfig = TasksConfig()
    """Training and evaluation tasks."""
    flow: FlowConfig = FlowConfig()
    """The agent flow."""
    reward: RewardConfig = RewardConfig()
    """The reward of a trajectory."""
    rollout: TrainRolloutConfig = TrainRolloutConfig()
    """How trajectories are sampled."""
    algorithm: AlgorithmConfig = FlowGRPO()
    """How trajectories become an update."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of reinforcement learning."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """Supervised fine-tuning before reinforcement learning."""
    trainer: TrainerConfig = TrainerConfig()
    """The training loop."""
    tune: TuneConfig | None = None
    """What `midstream tune` searches."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if not self.tasks.sources and self.rollout.source is None:
            raise ValueError("tasks.sources: at least one is required (or rollout.source, to train from a store)")
        if self.rollout.source is not None and self.rollout.backfill:
            raise ValueError("rollout.backfill makes more attempts, which a rollout.source cannot; set it to 0")
        if self.rollout.steps_ahead and (self.rollout.source is not None or self.trainer.deterministic):
            other = (
                "rollout.source: its groups are sampled elsewhere" if self.rollout.source else "trainer.deterministic"
            )
            raise ValueError(f"rollout.steps_ahead cannot be combined with {other}; set rollout.steps_ahead=0")
        if self.rollout.source is not None and self.algorithm.greedy_baseline:
            raise ValueError(f"'{self.algorithm.name}' needs greedy attempts, which a rollout.source does not have")
        if self.algorithm.role_credit.reruns:
            self._can_rerun()
        single = self.rollout.group_size == 1 and self.rollout.source is None
        if single and self.algorithm.needs_spread and not self.algorithm.role_credit.own_baseline:
            raise ValueError(
                f"rollout.group_size is 1, but '{self.algorithm.name}' compares the trajectories of a group and "
                "needs at least 2 trajectories; raise rollout.group_size or set algorithm.name=reinforce"
            )
        if single and self.reward.normalize == "group":
            raise ValueError(
                "rollout.group_size is 1, and reward.normalize=group sets the reward of a group of one to 0; raise "
                "rollout.group_size or set reward.normalize=running"
            )
        if self.rollout.failed == "score" and self.reward.failed is None:
            raise ValueError(
                "rollout.failed is 'score', but reward.failed does not set the reward of a failed trajectory"
            )
        named = [role for role, own in self.flow.roles.items() if own.adapter not in (None, self.policy.adapter)]
        if self.policy.tuning == "full" and named:
            raise ValueError(
                f"flow.roles.{named[0]}.adapter is '{self.flow.roles[named[0]].adapter}', but policy.tuning 'full' "
                "trains one set of weights; set policy.tuning=lora"
            )
        if self.policy.remote and self.trainer.deterministic:
            raise ValueError(
                "trainer.deterministic needs policy.engine 'torch': a server batches by timing, and repeats nothing "
                "bit for bit"
            )
        if self.trainer.deterministic and (shared := _shared_memory(self.flow)):
            raise ValueError(
                f"trainer.deterministic cannot be combined with {shared}: what an attempt reads from memory depends on "
                "which others have ended"
            )
        if self.trainer.deterministic and (timed := _by_timing(self.flow)):
            raise ValueError(
                f"trainer.deterministic cannot be combined with {timed}: what an attempt does would depend on timing"
            )
        if self.policy.remote and self.policy.numerics == "exact":
            raise ValueError(
                "policy.numerics 'exact' needs policy.engine 'torch': a server rounds otherwise than the learner; the "
                "difference is measured at every step, and algorithm.correction corrects for it"
            )
        algorithm, kl = self.algorithm, self.algorithm.kl
        if algorithm.rewards_as_given:
            conflicts = [
                setting
                for setting, on in (
                    (f"reward.normalize={self.reward.normalize}", self.reward.normalize != "none"),
                    ("algorithm.kl.placement=reward", kl.placement == "reward" and kl.coef > 0),
                    ("rollout.failed=score", algorithm.needs_components and self.rollout.failed == "score"),
                )
                if on
            ]
            if conflicts:
                raise ValueError(
                    f"'{algorithm.name}' needs unmodified rewards, but {' and '.join(conflicts)} would change them "
                    "or not provide their components; remove it, or use another algorithm"
                )
        if (
            self.policy.tuning == "full"
            and kl.reference == "base"
            and (kl.coef > 0 or "reference" in algorithm.required_outputs)
        ):
            raise ValueError(
                "algorithm.kl.reference 'base' is the model without its adapter, which needs policy.tuning 'lora'; "
                "set algorithm.kl.coef=0 or algorithm.kl.reference=start"
            )
        if algorithm.one_update and self.trainer.epochs_per_batch * self.trainer.minibatches > 1:
            raise ValueError(
                f"the advantages of '{algorithm.name}' are valid for one update; "
                "set trainer.epochs_per_batch=1 and trainer.minibatches=1"
            )
        return self

    def _can_rerun(self) -> None:
        """Raise `ValueError` for settings under which rewards cannot be compared with those of re-runs."""
        kl = self.algorithm.kl
        conflicts = {
            "rollout.source: its groups are sampled elsewhere": self.rollout.source is not None,
            f"reward.normalize={self.reward.normalize}": self.reward.normalize != "none",
            "algorithm.kl.placement=reward": kl.placement == "reward" and kl.coef > 0,
        }
        if found := [setting for setting, on in conflicts.items() if on]:
            name = self.algorithm.role_credit.name
            raise ValueError(
                f"algorithm.role_credit '{name}' compares rewards with those of re-runs, and cannot be combined with "
                f"{' and '.join(found)}"
            )


KEY_ALIASES = {
    "actor_rollout_ref.rollout.agent.default_agent_flow": "flow.name",
    "actor_rollout_ref.rollout.agent.agent_flow_config_path": "flow.flows_file",
}
"""Keys of verl's command line, mapped to ours."""


def resolve_aliases(overrides: Sequence[str]) -> list[str]:
    """Replace verl's keys in `overrides` by ours. A leading `+`, Hydra's syntax for new keys, is dropped from those."""
    translated: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        ours = KEY_ALIASES.get(key.strip().removeprefix("+"))
        translated.append(override if ours is None else f"{ours}{equals}{value}")
    return translated


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML config and apply dotted overrides (`trainer.max_steps=30`). Raises `ConfigError` that names the
    problem."""
    data: dict[str, Any] = apply_overrides(load_yaml(path), resolve_aliases(overrides))
    data.setdefault("name", Path(path).stem)
    return parse_config(TrainConfig, data, f"'{path}'" if not overrides else f"'{path}' with {' '.join(overrides)}")


def _by_timing(flow: FlowConfig) -> str | None:
    """Return the setting by which what an attempt does depends on timing, None if there is none."""
    if flow.name in ("plan_and_execute", "coordinator") and flow.settings.get("concurrency", 1) != 1:
        return "flow.settings.concurrency"
    if flow.name == "workflow_writer" and flow.settings.get("cache"):
        # A deterministic engine also waits for the calls of attempts that wait for another one's reply.
        return "flow.settings.cache"
    budget = flow.settings.get("budget")
    return "flow.settings.budget.seconds" if isinstance(budget, dict) and budget.get("seconds") else None


def _shared_memory(flow: FlowConfig) -> str | None:
    """Return the setting by which trajectories of `flow` write a memory that others read, None if there is none."""
    if flow.settings.get("reflections"):
        return "flow.settings.reflections"
    memory = flow.tool_settings.get("memory_retrieve")
    return "flow.tool_settings.memory_retrieve.write" if memory and memory.get("write") else None
