"""Builds the components of a run from its config: model, engines, tasks, reward, rollout, learner. Shared by training,
evaluation and `ask`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from midstream.agents.config import FlowConfig
from midstream.agents.endpoint import AgentEndpoint
from midstream.agents.registry import load_flows, with_frozen_roles
from midstream.core.errors import ConfigError, ModelError, Unsupported
from midstream.core.seeds import derive_seed
from midstream.core.types import Task, Trajectory
from midstream.engines.base import Engine, PolicyEngine
from midstream.engines.chat import ChatTokenizer, load_tokenizer
from midstream.engines.factory import EngineSettings, make_engine_on, make_policy_engine
from midstream.engines.imported import imported_engine, is_import_path
from midstream.engines.models import resolve
from midstream.engines.openai import OpenAIEngine
from midstream.engines.publication import POLICY
from midstream.engines.torch.allowed import Grammars
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.loading import load_policy
from midstream.engines.torch.numerics import Numerics, settle
from midstream.learn.config import PolicyConfig, TrainConfig
from midstream.learn.data.source import check_store_exists
from midstream.learn.model.critic import Critic
from midstream.learn.model.learner import Learner, Reference
from midstream.learn.model.policy_model import PolicyModel
from midstream.learn.model.reference import base_reference, swapped_reference
from midstream.learn.model.weights import Weights
from midstream.learn.run.adapters import RunAdapters, adapters_of
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rewards import RewardFunction
from midstream.rewards.judge import Judge, JudgeConfig, ask_engine, remote_judge
from midstream.rollouts import AgentFlowManager, AgentFlowWorker, evaluate_tasks
from midstream.tasks import TaskSet, load_tasks


@dataclass(slots=True)
class TrainingContext:
    """All components of a run in this process."""

    config: TrainConfig
    model_path: Path
    decoder: PolicyModel
    tokenizer: ChatTokenizer
    engine: PolicyEngine
    weights: Weights
    learner: Learner
    tasks: TaskSet
    reward: RewardFunction
    role_engines: dict[str, RoleEngine]
    numerics: Numerics
    shares_weights: bool = True
    """Whether `engine` samples from the weights that `learner` updates; otherwise updates are published to it."""
    reference: Reference | None = None
    """The reference policy, unless it depends on the start of the run: see `kl.reference`."""
    endpoint: AgentEndpoint | None = None
    """Accepts the calls of black-box agents; None refuses flows that run one."""
    adapters: RunAdapters = field(default_factory=RunAdapters)
    """What is trained, by name, and which role samples with which."""

    def manager(self, store: Store | None, role_engines: Mapping[str, RoleEngine] | None = None) -> AgentFlowManager:
        """Return a manager that runs the config's flow and records in `store`. `role_engines` replaces the config's
        engines."""
        worker = AgentFlowWorker(
            self.config.flow,
            role_engines or self.role_engines,
            sampling=self.config.rollout.sampling,
            store=store,
            score=self.reward.score,
            timeout_s=self.config.rollout.timeout_s,
            endpoint=self.endpoint,
            resume=self.config.rollout.resume_attempts,
            retry_failed=True,  # the cause of a failure may be gone when a run is resumed
        )
        return AgentFlowManager(
            worker, concurrency=self.config.rollout.concurrency, in_order=self.config.trainer.deterministic
        )

    async def evaluate(
        self,
        tasks: Sequence[Task],
        label: str,
        *,
        channel: str,
        train_step: int = 0,
        store: Store | None = None,
        on_done: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """One greedy, scored attempt at each of `tasks`; see `evaluate_tasks`."""
        config = self.config
        return await evaluate_tasks(
            config.flow,
            self.role_engines,
            tasks,
            self.reward.score,
            rollout=config.rollout,
            endpoint=self.endpoint,
            store=store,
            label=label,
            channel=channel,
            train_step=train_step,
            seed=config.trainer.seed,
            in_order=config.trainer.deterministic,
            on_done=on_done,
        )


def build(
    config: TrainConfig,
    recorded: Numerics | None = None,
    endpoint: AgentEndpoint | None = None,
    *,
    numerics_required: bool = True,
    sampler: PolicyEngine | None = None,
) -> TrainingContext:
    """Load and connect all components. Raises a `UserError` for anything wrong with the config.

    `sampler` samples in place of this process, see `connect_sampler`.

    `recorded` holds the numerics of the run whose policy this is, which are kept; with `numerics_required` False, only
    where this machine can. `endpoint` accepts the calls of black-box agents.
    """
    set_threads(config.trainer.threads)
    if config.rollout.source is not None:
        check_store_exists(config.rollout.source)
    tasks = load_tasks(config.tasks)
    if config.flow.flows_file is not None:
        load_flows(config.flow.flows_file)
    algorithm = config.algorithm.for_reward(config.reward.weights)
    config = config.model_copy(update={"algorithm": algorithm, "flow": with_frozen_roles(config.flow)})
    model_path = resolve(config.policy.model)
    tokenizer = load_tokenizer(model_path)
    decoder = load_policy(config.policy, model_path, recorded)
    if len(tokenizer) > decoder.vocabulary_size:
        raise ModelError(
            f"the tokenizer of '{model_path}' has {len(tokenizer)} tokens, but the model only "
            f"{decoder.vocabulary_size}",
            "use the tokenizer the model was trained with",
        )
    adapters = adapters_of(config)
    weights = make_weights(config, decoder, "adapters", adapters.names)
    if sampler is None:
        numerics = settle(decoder, config.policy.numerics, recorded, required=numerics_required)
    else:
        numerics = settle(decoder, "fast", recorded, required=numerics_required)
        numerics = replace(numerics, asked=config.policy.numerics, why=f"{sampler.name} samples, and rounds otherwise")
    engine = sampler or make_engine_on(
        decoder,
        tokenizer,
        adapter=adapters.names[0],
        slots=config.rollout.concurrency,
        deterministic=config.trainer.deterministic,
    )
    critic = make_critic(config, decoder, tokenizer)
    learner = Learner(decoder, weights, config.optimizer, config.trainer.max_tokens_per_pass, critic)
    reference = make_reference(config, decoder, weights, tokenizer)
    role_engines = make_role_engines(config.flow, engine, tokenizer, adapters)
    reward = RewardFunction(config.reward, make_judge(config.reward.judge, engine, tokenizer))
    if config.algorithm.role_credit.reruns and reward.scores_groups:
        raise ConfigError(
            f"algorithm.role_credit '{config.algorithm.role_credit.name}' scores re-runs one by one, but a reward "
            "component compares the trajectories of a group",
            "remove that component, or set algorithm.role_credit.name=shared",
        )
    context = TrainingContext(
        config,
        model_path,
        decoder,
        tokenizer,
        engine,
        weights,
        learner,
        tasks,
        reward,
        role_engines,
        numerics,
        sampler is None,
        reference,
        endpoint,
        adapters,
    )
    # Validates flow, roles, tools and settings before any training work.
    context.manager(None)
    return context


async def connect_sampler(config: PolicyConfig, stack: AsyncExitStack) -> PolicyEngine | None:
    """Connect to the servers of `policy.engine`; `stack` disconnects. None if this process samples. Raises `RunError`
    if a server does not answer, `ConfigError` if it cannot take the weights that are trained."""
    if not config.remote:
        return None
    tokenizer = await asyncio.to_thread(lambda: load_tokenizer(resolve(config.model)))
    settings = EngineSettings(model=config.model, engine=config.engine, api_key_env=config.api_key_env)
    sampler = await make_policy_engine(settings, tokenizer, stack)
    if config.tuning == "full" and not sampler.capabilities.full:
        raise ConfigError(
            f"policy.tuning is full, but {sampler.name} takes LoRA adapters only",
            "set policy.tuning=lora, or policy.engine=torch",
        )
    return sampler


def processors() -> int:
    """Return the number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int | None) -> None:
    """Set the number of CPU threads. Raises `ConfigError` when there are fewer processors."""
    if count is None:
        return
    if count > (available := processors()):
        raise ConfigError(
            f"trainer.threads is {count}, but this machine has {available} processors: more threads would only wait",
            f"set trainer.threads to {available} or fewer, or remove it",
        )
    torch.set_num_threads(count)


def make_weights(config: TrainConfig, decoder: PolicyModel, seed: str, adapters: Sequence[str] = (POLICY,)) -> Weights:
    """Return the trainable weights of `decoder` according to `policy`. New adapters are initialized from `seed`, and
    from their names but for the first."""
    decoder.gradient_checkpointing = config.trainer.gradient_checkpointing
    if config.policy.tuning == "lora":
        lora = config.policy.lora
        for number, name in enumerate(adapters):
            adapter_seed = derive_seed(config.trainer.seed, seed, *([name] if number else []))
            decoder.add_adapters(lora.rank, lora.alpha, adapter_seed, lora.targets, lora.last_layers, name)
    return Weights(decoder, config.policy.tuning)


def make_critic(config: TrainConfig, policy: PolicyModel, tokenizer: ChatTokenizer) -> Critic | None:
    """Return the critic of an algorithm that needs one. Raises `ModelError` when its model has a different vocabulary
    than the policy."""
    critic = config.algorithm.required_critic
    if critic is None:
        return None
    if critic.model is None:
        return Critic(critic, policy, None, config.optimizer.max_grad_norm)
    decoder = load_compatible(critic.model, policy, tokenizer, "algorithm.critic.model")
    return Critic(critic, policy, make_weights(config, decoder, "critic"), config.optimizer.max_grad_norm)


def make_reference(
    config: TrainConfig, decoder: PolicyModel, weights: Weights, tokenizer: ChatTokenizer
) -> Reference | None:
    """Return the reference policy. None for `start`, which is not known yet, and for `base` in full tuning, where no
    base model is left."""
    name = config.algorithm.kl.reference
    if name == "base":
        return base_reference(decoder) if config.policy.tuning == "lora" else None
    if name == "start":
        return None
    folder = Path(name)
    if (folder / "state.json").is_file():
        return swapped_reference(decoder, weights, weights.read(folder))
    return base_reference(load_compatible(name, decoder, tokenizer, "algorithm.kl.reference"))


def load_compatible(name: str, policy: PolicyModel, tokenizer: ChatTokenizer, setting: str) -> PolicyModel:
    """Load a model with the policy's vocabulary. Raises `ModelError` when its vocabulary differs."""
    path = resolve(name)
    if load_tokenizer(path).vocabulary() != tokenizer.vocabulary():
        raise ModelError(
            f"{setting} '{name}' has another vocabulary than the policy: it cannot read the policy's tokens",
            "name a model with the policy's own tokenizer",
        )
    decoder = load_decoder(path, policy.dtype, policy.device)
    # Same kernels as the policy, so that the same model gives the same numbers.
    decoder.compute_by(policy.rows, policy.queries)
    decoder.grammars = Grammars(tokenizer, decoder.vocabulary_size)
    return decoder


def check_trained_roles(context: TrainingContext) -> None:
    """Raise `ConfigError` when no role of the flow is trained."""
    roles = context.manager(None).roles
    if not any(roles.values()):
        raise ConfigError(
            f"no role of the flow '{context.config.flow.name}' is trained ({', '.join(roles)})",
            "set engine: policy and train: true for one of flow.roles",
        )


def make_role_engines(
    flow: FlowConfig, policy: PolicyEngine, tokenizer: ChatTokenizer, adapters: RunAdapters
) -> dict[str, RoleEngine]:
    """Return the engine of each role in the config. Roles with `rules` have no engine."""
    role_engines = {"policy": RoleEngine(policy, tokenizer, True, adapters.names[0])}
    frozen: RoleEngine | None = None
    for role, config in flow.roles.items():
        if config.engine == "policy":
            role_engines[role] = RoleEngine(policy, tokenizer, config.train is not False, adapters.of_role(role))
        elif config.engine == "frozen":
            if frozen is None:
                frozen = RoleEngine(frozen_engine(policy, f"flow.roles.{role}.engine"), tokenizer, False)
            role_engines[role] = frozen
        elif config.engine.startswith(("http://", "https://")):
            role_engines[role] = RoleEngine(OpenAIEngine(config.engine, config.model, config.api_key_env), None, False)
        elif is_import_path(config.engine):
            role_engines[role] = RoleEngine(imported_engine(config.engine, tokenizer), tokenizer, False)
        elif config.engine != "rules":
            raise ConfigError(
                f"flow.roles.{role}.engine is '{config.engine}'",
                "use policy, frozen, rules, the URL of an OpenAI-compatible server, or package.module:function",
            )
    return role_engines


def frozen_engine(policy: PolicyEngine, setting: str) -> Engine:
    """Return an engine for the trainable model without its adapter. Raises `ConfigError` when it has none."""
    try:
        return policy.frozen()
    except Unsupported:
        raise ConfigError(f"{setting} is 'frozen', which needs policy.tuning=lora", "or give a URL") from None


def make_judge(config: JudgeConfig | None, policy: PolicyEngine, tokenizer: ChatTokenizer) -> Judge | None:
    """Return the judge for reward components, configured by `reward.judge`."""
    if config is None or config.engine != "frozen":
        return remote_judge(config)
    return Judge(config, ask_engine(frozen_engine(policy, "reward.judge.engine"), tokenizer))
