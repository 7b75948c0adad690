"""The supervised start: cross-entropy on demonstrations that the flow itself records, in the exact tokens training will
see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from midstream.agents.agentflow.demonstrate import Demonstrator
from midstream.agents.rollout import groups_of
from midstream.core.errors import ConfigError
from midstream.core.seeds import derive_seed
from midstream.core.types import Trajectory
from midstream.learn.config import WarmStartConfig
from midstream.learn.learner import Learner
from midstream.learn.log_probs import TokenSequence
from midstream.learn.setup import Parts
from midstream.record.recorder import Voice
from midstream.tools import Toolbox, load_tools


def check_demonstrations(parts: Parts) -> None:
    """Raise `ConfigError` when the config asks for a warm start that lacks what it needs."""
    config = parts.config
    if not config.warm_start.examples:
        return
    if config.flow.name != "agentflow":
        raise ConfigError(
            f"warm_start needs demonstrations, which the flow '{config.flow.name}' has none of",
            "set warm_start.examples=0",
        )
    for place in range(config.warm_start.examples):
        task = parts.tasks.get("train", place)
        if "plan" not in task.metadata:
            raise ConfigError(
                f"warm_start needs tasks that carry a plan, and the task '{task.id}' has none",
                "set warm_start.examples=0, or give tasks the tool calls that solve them as metadata 'plan'",
            )


async def demonstrate(parts: Parts) -> list[Trajectory]:
    """Let the flow solve the first training tasks with a demonstrator in place of the trainable roles."""
    config = parts.config
    tasks = [parts.tasks.get("train", place) for place in range(config.warm_start.examples)]
    toolbox = Toolbox(load_tools(config.flow.tools))
    demonstrator = Demonstrator(
        parts.tokenizer,
        toolbox,
        config.flow.settings.get("notation", "json"),
        wrong=config.warm_start.wrong,
        seed=config.trainer.seed,
    )
    voices = {
        role: Voice(demonstrator, parts.tokenizer, voice.trainable)
        for role, voice in parts.voices.items()
        if voice.trainable
    }
    right = groups_of(tasks, 1, prefix="right", seed=config.trainer.seed)
    wrong = groups_of(tasks, 1, prefix="wrong", seed=config.trainer.seed)
    demonstrator.assign({a.uid: a.task for a in right}, {a.uid: a.task for a in wrong})
    made = await parts.manager(None, voices).run([*right, *wrong])
    pairs = zip(made[: len(tasks)], made[len(tasks) :], strict=True)
    return [replace(shown, steps=demonstrator.lesson(shown, spoiled)) for shown, spoiled in pairs]


def make_learner(parts: Parts) -> Learner:
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
