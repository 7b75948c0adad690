"""Trajectories for a supervised start that are not demonstrations: the policy's own successes, and recorded ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from midstream.core.errors import ConfigError, RunError, UserError
from midstream.core.types import FinishReason, Status, Step, Trajectory
from midstream.learn.run.setup import TrainingContext
from midstream.record.curation import Curation
from midstream.record.export_files import file_format
from midstream.record.export_format import rows_of
from midstream.record.rows import step_from_row, trajectory_from_row
from midstream.record.store import Store
from midstream.rollouts.attempts import RERUN_OF, groups_of

DEMONSTRATIONS, SUCCESSES = "demonstrations", "successes"
HELD_OUT = ("val", "test")
_log = logging.getLogger(__name__)


async def own_successes(context: TrainingContext) -> list[Trajectory]:
    """Attempt the first training tasks with the policy as it is; return the good attempts. Raises `RunError` when there
    are none: then there is nothing to imitate."""
    config = context.config
    settings = config.warm_start
    tasks = [context.tasks.get("train", index) for index in range(settings.examples)]
    attempts = groups_of(tasks, settings.attempts, prefix="own", seed=config.trainer.seed)
    made = await context.manager(None).run(attempts)
    good = [one for one in made if _is_good(one, context) and any(step.trainable for step in one.steps)]
    if not good:
        best = max((one.reward for one in made if one.reward is not None), default=None)
        raise RunError(
            f"none of the {len(made)} attempts for the warm start is good enough (highest reward: {best})",
            "lower warm_start.at_least, raise warm_start.attempts, or set warm_start.examples=0",
        )
    _log.info("warm start: %d of %d attempts are imitated", len(good), len(made))
    return good


def recorded_lessons(context: TrainingContext) -> list[Trajectory]:
    """Read the good trajectories of `warm_start.source`, in the order they were recorded. Those of held-out tasks and
    re-runs are left out, and so are trajectories and steps that curation excluded. Raises `RunError` when the file
    cannot be used, `ConfigError` when no trajectory fits the flow and the model."""
    config = context.config
    settings, roles = config.warm_start, {role for role, trained in context.manager(None).roles.items() if trained}
    found: list[Trajectory] = []
    held_out, seen, least = 0, set[str](), _least_reward(context)
    for trajectory, excluded in _read(Path(settings.source)):
        if trajectory.status is not Status.COMPLETED or trajectory.reward is None or trajectory.reward < least:
            continue
        if RERUN_OF in trajectory.metadata:
            continue  # one of its roles did nothing
        if trajectory.task.split in HELD_OUT:
            held_out += 1
            continue
        seen |= {step.role for step in trajectory.steps}
        steps = tuple(
            replace(step, trainable=step.step_index not in excluded and step.role in roles and _is_whole(step))
            for step in trajectory.steps
        )
        if any(step.trainable for step in steps):
            _check_tokens([step for step in steps if step.trainable], context)
            found.append(replace(trajectory, steps=steps))
            if len(found) == settings.examples:
                break
    if held_out:
        _log.warning("warm start: %d trajectories of held-out tasks in '%s' are left out", held_out, settings.source)
    if not found:
        raise ConfigError(
            f"warm_start.source: no trajectory in '{settings.source}' can be imitated: reward at least {least:g}, a "
            f"training task, and a step of a trained role ({', '.join(sorted(roles))}) are needed; "
            f"roles recorded there: {', '.join(sorted(seen)) or 'none'}",
            "lower warm_start.at_least, or record attempts of this flow",
        )
    return found


def _is_good(trajectory: Trajectory, context: TrainingContext) -> bool:
    least = context.config.warm_start.at_least
    if least is None:
        return context.reward.succeeded(trajectory)
    return trajectory.status is Status.COMPLETED and trajectory.reward is not None and trajectory.reward >= least


def _least_reward(context: TrainingContext) -> float:
    least = context.config.warm_start.at_least
    return context.config.reward.success_at if least is None else least


def _is_whole(step: Step) -> bool:
    """Whether a step has a whole reply that its trajectory used. Steps of other models, which were not trained on,
    are imitated too."""
    return bool(step.response_ids) and step.finish_reason != FinishReason.INTERRUPTED and "late" not in step.metadata


def _check_tokens(steps: Sequence[Step], context: TrainingContext) -> None:
    """Raise `ConfigError` when the tokens are not those of the policy's tokenizer."""
    size = len(context.tokenizer)
    for step in steps:
        known = all(0 <= token < size for token in (*step.prompt_ids, *step.response_ids))
        if not known or (step.text and context.tokenizer.text_of(step.response_ids) != step.text):
            raise ConfigError(
                f"warm_start.source: step {step.step_index} of '{step.trajectory_uid}' was recorded with another "
                "tokenizer",
                f"record with the policy's model, '{context.config.policy.model}'",
            )


def _read(path: Path) -> Iterator[tuple[Trajectory, set[int]]]:
    """Yield trajectories that curation did not reject, each with the indices of the steps it excluded from the loss."""
    if path.suffix in (".jsonl", ".parquet"):
        yield from _read_export(path)
        return
    with Store(path, read_only=True) as store:
        for channel in store.trajectories.channels():
            if channel in HELD_OUT:
                continue
            for trajectory in store.trajectories.iterate(channel=channel):
                decided = store.annotations.curation(trajectory.uid)
                if not _rejected(decided):
                    yield trajectory, _excluded(trajectory, decided)


def _read_export(path: Path) -> Iterator[tuple[Trajectory, set[int]]]:
    if not path.is_file():
        raise RunError(f"no file at '{path}'", "give warm_start.source a store, or a file from midstream store export")
    for place, read in file_format(path).read(path):
        try:
            rows = rows_of(read())
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise RunError(f"'{path}', {place}: {error}", "export it again") from None
        if not _rejected(rows.curation):
            trajectory = trajectory_from_row(rows.trajectory, [step_from_row(row) for row in rows.steps])
            yield trajectory, _excluded(trajectory, rows.curation)


def _rejected(decided: Sequence[Curation]) -> bool:
    return any(one.step_index is None and one.quality in ("reject", "bad") for one in decided)


def _excluded(trajectory: Trajectory, decided: Sequence[Curation]) -> set[int]:
    out = {one.step_index for one in decided if one.trainable is False}
    return {step.step_index for step in trajectory.steps if None in out or step.step_index in out}
