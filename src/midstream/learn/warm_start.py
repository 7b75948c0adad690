"""The supervised start: cross-entropy on demonstrations that the flow itself records, in the exact tokens training will
see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from midstream.agents.agentflow.demonstrate import Demonstrator
from midstream.agents.agentflow.flow import AgentFlowSettings
from midstream.agents.rollout import groups_of
from midstream.core.errors import ConfigError
from midstream.core.seeds import derive_seed
from midstream.core.types import Status, Task, Trajectory
from midstream.learn.config import WarmStartConfig
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence
from midstream.learn.setup import TrainingContext
from midstream.record.recorder import RoleEngine
from midstream.tools import Toolbox, load_tools


def check_demonstrations(parts: TrainingContext) -> None:
    """Raise `ConfigError` when the config asks for a warm start that lacks what it needs."""
    config = parts.config
    if not config.warm_start.examples:
        return
    if config.flow.name != "agentflow":
        raise ConfigError(
            f"warm_start needs demonstrations, which the flow '{config.flow.name}' has none of",
            "set warm_start.examples=0",
        )
    for role in parts.manager(None).roles:
        if role not in Demonstrator.roles:
            raise ConfigError(
                f"warm_start cannot show what the role '{role}' should say",
                f"set flow.roles.{role}.engine=rules, or warm_start.examples=0",
            )
    demonstrator = _demonstrator(parts)
    for task in _tasks(parts):
        demonstrator.check(task)


async def demonstrate(parts: TrainingContext) -> list[Trajectory]:
    """Let the flow solve the first training tasks with a demonstrator in place of its engines."""
    seed, tasks = parts.config.trainer.seed, _tasks(parts)
    demonstrator = _demonstrator(parts)
    # Roles that are not trained are spoken for too, and stay untrained.
    role_engines = {
        role: RoleEngine(demonstrator, parts.tokenizer, role_engine.trainable)
        for role, role_engine in parts.role_engines.items()
    }
    right = groups_of(tasks, 1, prefix="right", seed=seed)
    wrong = groups_of(tasks, 1, prefix="wrong", seed=seed)
    demonstrator.assign({a.uid: a.task for a in right}, {a.uid: a.task for a in wrong})
    made = await parts.manager(None, role_engines).run([*right, *wrong])
    shown, spoiled = made[: len(tasks)], made[len(tasks) :]
    for trajectory in shown:
        _insist(trajectory)
    return [replace(one, steps=demonstrator.lesson(one, other)) for one, other in zip(shown, spoiled, strict=True)]


def _tasks(parts: TrainingContext) -> list[Task]:
    return [parts.tasks.get("train", place) for place in range(parts.config.warm_start.examples)]


def _demonstrator(parts: TrainingContext) -> Demonstrator:
    config = parts.config
    settings = AgentFlowSettings.model_validate(config.flow.settings)
    toolbox = Toolbox(load_tools(config.flow.tools))
    return Demonstrator(
        parts.tokenizer,
        toolbox,
        settings.notation,
        settings.fields,
        wrong=config.warm_start.wrong,
        seed=config.trainer.seed,
    )


def _insist(shown: Trajectory) -> None:
    """Raise `ConfigError` unless the demonstration went as planned: nothing must be taught that does not work."""
    failed = [call.result for call in shown.tool_calls if not call.ok]
    if shown.status is not Status.COMPLETED or failed:
        raise ConfigError(
            f"the demonstration of the task '{shown.task.id}' went wrong: {shown.error or failed[0]}",
            "mend the plan in the task's metadata, or set warm_start.examples=0",
        )


def make_learner(parts: TrainingContext) -> Learner:
    """A learner of the same weights for the warm start alone: reinforcement learning begins with a fresh optimizer."""
    config = parts.config
    optimizer = config.optimizer.model_copy(update={"lr": config.warm_start.lr, "warmup_steps": 0})
    learner = Learner(parts.decoder, parts.weights, optimizer, config.trainer.max_tokens_per_pass)
    # A rate that falls to 0 leaves the choices shown at the shares they were shown in; a constant one ends wherever the
    # last batches pushed it, often at one tool for everything, from where reinforcement learning cannot explore.
    learner.decay_over = config.warm_start.epochs * -(-config.warm_start.examples // config.warm_start.batch_size)
    return learner


def lessons(demonstrations: Sequence[Trajectory], config: WarmStartConfig, seed: int) -> Iterator[list[TokenSequence]]:
    """What the trainable roles said in `demonstrations`, an update at a time, in a new order each epoch."""
    for epoch in range(config.epochs):
        order = list(demonstrations)
        Random(derive_seed(seed, "warm start", epoch)).shuffle(order)
        for start in range(0, len(order), config.batch_size):
            yield [
                TokenSequence(step.prompt_ids, step.response_ids)
                for trajectory in sorted(order[start : start + config.batch_size], key=lambda t: t.steps[0].prompt_ids)
                for step in trajectory.steps
                if step.trainable
            ]
