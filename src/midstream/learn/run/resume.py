"""Resumes a run: restores its newest checkpoint and truncates its logs to it."""

from __future__ import annotations

from pathlib import Path

from midstream.core.files import recover_folders
from midstream.learn.model.learner import Learner
from midstream.learn.run.checkpoint import TrainState, checkpoints, load_checkpoint
from midstream.learn.run.run_dir import RunDirectory


def resume_state(directory: RunDirectory, learner: Learner, max_steps: int) -> tuple[TrainState, Path | None]:
    """Restore the newest checkpoint of a run into `learner`. Returns its state and folder: a fresh state and None if
    there is none. Log rows after it are dropped, as the run will produce them again."""
    recover_folders(directory / "checkpoints")
    found = checkpoints(directory.path)
    if not found:
        for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl"):
            directory.filter_log(name, lambda row: False)
        return TrainState(0, 0, 0, 0), None
    state = load_checkpoint(found[-1], learner)
    directory.filter_log("metrics.jsonl", lambda row: row["step"] <= state.step)
    # When a finished run continues, its final evaluation is no longer final.
    directory.filter_log(
        "evals.jsonl",
        lambda row: row["step"] <= state.step and (row["label"] != "final" or row["step"] == max_steps),
    )
    # Samples are written before their evaluation's row; without the row they will be written again.
    evaluated = {row["label"] for row in directory.rows("evals.jsonl")}
    directory.filter_log("samples.jsonl", lambda row: row["label"] in evaluated)
    return state, found[-1]
