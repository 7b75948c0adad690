"""Supervised warm start: cross-entropy on trajectories, on the exact tokens of later training.

The trajectories are demonstrations recorded by the flow itself, the policy's own successes, or recorded ones (see
`collect_lessons`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from midstream.agents.demonstrations import Demonstrator
from midstream.agents.registry import find_flow
from midstream.agents.toolsets import load_flow_tools
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError
from midstream.core.seeds import derive_seed
from midstream.core.types import Status, Task, Trajectory
from midstream.learn.config import WarmStartConfig
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence
from midstream.learn.run.lessons import DEMONSTRATIONS, SUCCESSES, own_successes, recorded_lessons
from midstream.learn.run.setup import TrainingContext
from midstream.record.recorder import RoleEngine
from midstream.rollouts.attempts import groups_of
from midstream.tools import Toolbox


def check_warm_start(context: TrainingContext) -> None:
    """Raise `UserError` when the config asks for a warm start without meeting its requirements."""
    settings = context.config.warm_start
    if settings.examples and settings.source == DEMONSTRATIONS:
        _check_demonstrations(context)
    elif settings.examples and settings.source != SUCCESSES:
        recorded_lessons(context)


async def collect_lessons(context: TrainingContext) -> list[Trajectory]:
    """Return the trajectories to imitate. A step teaches the adapter that sampled it, or its role's."""
    source = context.config.warm_start.source
    if source == DEMONSTRATIONS:
        found = await demonstrate(context)
    else:
        found = await own_successes(context) if source == SUCCESSES else recorded_lessons(context)
    return context.adapters.assign(found)


def _check_demonstrations(context: TrainingContext) -> None:
    roles, demonstrator = context.manager(None).roles, _demonstrator(context)
    for role in roles:
        if role not in demonstrator.roles:
            raise ConfigError(
                f"warm_start has no demonstrations for the role '{role}'",
                f"set flow.roles.{role}.engine=rules, or warm_start.examples=0",
            )
    for task in _tasks(context):
        demonstrator.check(task)


async def demonstrate(context: TrainingContext) -> list[Trajectory]:
    """Run the flow on the first training tasks with a demonstrator instead of its engines."""
    seed, tasks = context.config.trainer.seed, _tasks(context)
    demonstrator = _demonstrator(context)
    # The demonstrator also answers for untrained roles, which stay untrained.
    role_engines = {
        role: RoleEngine(demonstrator, context.tokenizer, role_engine.trainable)
        for role, role_engine in context.role_engines.items()
    }
    right = groups_of(tasks, 1, prefix="right", seed=seed)
    wrong = groups_of(tasks, 1, prefix="wrong", seed=seed)
    demonstrator.assign({a.uid: a.task for a in right}, {a.uid: a.task for a in wrong})
    trajectories = await context.manager(None, role_engines).run([*right, *wrong])
    correct, incorrect = trajectories[: len(tasks)], trajectories[len(tasks) :]
    for trajectory in correct:
        _check_success(trajectory)
    return [replace(one, steps=demonstrator.lesson(one, other)) for one, other in zip(correct, incorrect, strict=True)]


def _tasks(context: TrainingContext) -> list[Task]:
    return [context.tasks.get("train", index) for index in range(context.config.warm_start.examples)]


def _demonstrator(context: TrainingContext) -> Demonstrator:
    config = context.config
    flow = find_flow(config.flow.name)
    settings = parse_config(flow.settings, config.flow.settings, "flow.settings")
    loaded = load_flow_tools(config.flow)
    toolbox = Toolbox(loaded.tools, toolsets=loaded.toolsets)
    wrong, seed = config.warm_start.wrong, config.trainer.seed
    demonstrator = flow.demonstrator(settings, context.tokenizer, toolbox, wrong=wrong, seed=seed)
    if demonstrator is None:
        raise ConfigError(
            f"warm_start needs demonstrations, but the flow '{config.flow.name}' has none",
            "set warm_start.examples=0, or override the flow's method `demonstrator`",
        )
    return demonstrator


def _check_success(demonstration: Trajectory) -> None:
    """Raise `ConfigError` when a demonstration failed: only working demonstrations may be taught."""
    problems = [call.result for call in demonstration.tool_calls if not call.ok]
    if demonstration.answer is None:
        problems.append("it ends without an answer that the flow accepts")
    if demonstration.status is not Status.COMPLETED or problems:
        raise ConfigError(
            f"the demonstration of the task '{demonstration.task.id}' failed: {demonstration.error or problems[0]}",
            "correct the demonstration in the task's metadata, or set warm_start.examples=0",
        )


def make_learner(context: TrainingContext, count: int) -> Learner:
    """Return a learner for a warm start on `count` trajectories only: reinforcement learning begins with a fresh
    optimizer."""
    config = context.config
    optimizer = config.optimizer.model_copy(update={"lr": config.warm_start.lr, "warmup_steps": 0})
    learner = Learner(context.decoder, context.weights, optimizer, config.trainer.max_tokens_per_pass)
    # A learning rate that decays to 0 keeps choices at their shares in the demonstrations. A constant rate ends
    # wherever the last batches pushed it, often at one tool for everything: reinforcement learning cannot explore then.
    learner.decay_over = config.warm_start.epochs * -(-count // config.warm_start.batch_size)
    return learner


def lesson_batches(
    trajectories: Sequence[Trajectory], config: WarmStartConfig, seed: int
) -> Iterator[list[TokenSequence]]:
    """Yield the trainable sequences of `trajectories`, one update at a time, reshuffled each epoch. A reply under a
    constraint is imitated under it, as it will be sampled."""
    for epoch in range(config.epochs):
        order = list(trajectories)
        Random(derive_seed(seed, "warm start", epoch)).shuffle(order)
        for start in range(0, len(order), config.batch_size):
            yield [
                TokenSequence(step.prompt_ids, step.response_ids, constraint=step.constraint, adapter=step.adapter)
                for trajectory in sorted(order[start : start + config.batch_size], key=lambda t: t.steps[0].prompt_ids)
                for step in trajectory.steps
                if step.trainable
            ]
